"""w2v-BERT 2.0 encoder and the semantic codec."""
