"""Sizes of the embedded voice: one place that every training stage and the packaging read.

The numbers are chosen so that all shipped weights fit into 38 MB in half precision and every stage trains on two CPU
cores; `phoneme` text, 512 codes at 50 Hz, 80 mel bands at 22.05 kHz as in the full system.
"""

from __future__ import annotations

from indextts2.config import (
    BigVGANConfig,
    CampPlusConfig,
    ConformerConfig,
    DiTConfig,
    GenerationConfig,
    GPTConfig,
    LengthRegulatorConfig,
    ModelConfig,
    S2MelConfig,
    SemanticCodecConfig,
    W2VBertConfig,
    WaveNetConfig,
    check_consistency,
)
from indextts2.text.phonemes import VOCABULARY_SIZE

FEATURE_SIZE = 192
CODEBOOK_SIZE = 512
STYLE_SIZE = 192
# All encoder layers are trained; only the first `semantic_output_layer` of them ship.
ENCODER_LAYERS, FEATURE_LAYER = 4, 3


def _conditioner(blocks: int, heads: int) -> ConformerConfig:
    return ConformerConfig(
        output_size=64, linear_units=256, attention_heads=heads, num_blocks=blocks, perceiver_depth=1,
        perceiver_head_dim=32, kernel_size=15,
    )  # fmt: skip


def embedded_model_config() -> ModelConfig:
    """The configuration of the embedded voice; consistent by construction and checked."""
    gpt = GPTConfig(
        model_dim=192, layers=5, heads=3, max_mel_tokens=800, max_text_tokens=400,
        number_text_tokens=VOCABULARY_SIZE, number_mel_codes=CODEBOOK_SIZE + 2,
        start_mel_token=CODEBOOK_SIZE, stop_mel_token=CODEBOOK_SIZE + 1,
        condition_module=_conditioner(blocks=1, heads=4), emo_condition_module=_conditioner(blocks=1, heads=4),
        condition_input_dim=FEATURE_SIZE, condition_latents=8, emotion_latent_dim=96, skips_first_mel_position=False,
    )  # fmt: skip
    s2mel = S2MelConfig(
        style_dim=STYLE_SIZE,
        length_regulator=LengthRegulatorConfig(channels=192, in_channels=FEATURE_SIZE),
        dit=DiTConfig(hidden_dim=192, num_heads=3, depth=5, content_dim=192, block_size=4096),
        wavenet=WaveNetConfig(hidden_dim=192, num_layers=4),
        latent_projection=(64, 32),
        # Seven steps, closer together at the start, come nearer to where many steps lead than ten even ones.
        steps=7,
        sway=-0.7,
        # Measured: less noise and more guidance than the official model give clearer words; beyond 1.5 words suffer.
        cfg_rate=1.5,
        flow_temperature=0.5,
        # Likeness is the same with 0.7 s and with 5 s of prompt; time is not.
        prompt_seconds=2.0,
    )  # fmt: skip
    config = ModelConfig(
        gpt=gpt,
        semantic_codec=SemanticCodecConfig(
            codebook_size=CODEBOOK_SIZE, hidden_size=FEATURE_SIZE, codebook_dim=8, vocos_dim=128,
            vocos_intermediate_dim=384, vocos_num_layers=4,
        ),
        s2mel=s2mel,
        w2v_bert=W2VBertConfig(
            hidden_size=FEATURE_SIZE, num_hidden_layers=ENCODER_LAYERS, num_attention_heads=4, intermediate_size=512,
        ),
        campplus=CampPlusConfig(
            embedding_size=STYLE_SIZE, head_channels=16, initial_channels=64, bottleneck_channels=64,
            block_layers=(4, 8, 6),
        ),
        bigvgan=BigVGANConfig(
            upsample_initial_channel=192, use_bias_at_final=False, use_tanh_at_final=False, pitch_channels=64,
        ),
        emo_num=(1,) * 8,
        semantic_output_layer=FEATURE_LAYER,
        tokenizer="phoneme",
        # 512 codes come back all the time: no penalty on repetition. Beams cost more than they give at this size.
        generation=GenerationConfig(
            temperature=0.7, top_k=30, top_p=0.9, repetition_penalty=1.0, num_beams=1, max_mel_tokens=800,
        ),
    )  # fmt: skip
    return check_consistency(config)
