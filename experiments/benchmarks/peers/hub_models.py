"""Resize networks of timm and Hugging Face, and print one JSON object per network.

Arguments: `[NAME …]`. A name is one of timm's, or one in `transformer_models.MODELS` followed by
`:eager` or `:sdpa`. Weights are random, so nothing is downloaded.
"""

import sys

import timm
import torch
from torch import nn

from dynopt_ray.structure import Inputs
from experiments.benchmarks.peers import transformer_models
from experiments.benchmarks.peers.checks import print_checked

# One small network of each family.
TIMM = (
    *("beit_base_patch16_224", "botnet26t_256", "cait_xxs24_224", "caformer_s18"),
    *("coat_lite_tiny", "coatnet_nano_rw_224", "convit_tiny", "convmixer_768_32"),
    *("convnextv2_atto", "cpubone_nano", "crossvit_9_240", "cspresnet50", "davit_tiny"),
    *("deit_tiny_distilled_patch16_224", "dla46_c", "dpn68", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientformerv2_s0", "efficientnet_b0", "efficientvim_m1"),
    *("efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8"),
    *("fbnetc_100", "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnetv2_100", "gmlp_ti16_224"),
    *("halonet26t", "hardcorenas_a", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small"),
    *("inception_next_atto", "lambda_resnet26t", "levit_128s", "lcnet_035", "mixer_s32_224"),
    *("mixnet_s", "mobileone_s0", "mobilenetv4_conv_small_035", "mobilevit_xxs"),
    *("mobilevitv2_050", "mvitv2_tiny", "naflexvit_base_patch16_gap", "nest_tiny"),
    *("nf_regnet_b0", "pit_ti_224", "poolformerv2_s12", "pvt_v2_b0", "rdnet_tiny"),
    *("repghostnet_050", "repvgg_a0", "repvit_m0_9", "res2net50_14w_8s", "resmlp_12_224"),
    *("resnest14d", "resnetv2_50x1_bit", "rexnet_100", "selecsls42", "sequencer2d_s"),
    *("shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swinv2_cr_tiny_ns_224"),
    *("test_mambaout", "tiny_vit_5m_224", "tinynet_e", "tnt_s_patch16_224", "tresnet_m"),
    *("twins_svt_small", "visformer_tiny", "vit_small_patch16_dinov3", "vitamin_small_224"),
    *("volo_d1_224", "ese_vovnet19b_slim_dw", "xception41", "xcit_nano_12_p16_224"),
)


def main() -> None:
    """Check the named networks, or all of them."""
    print_checked(sys.argv[1:] or [*TIMM, *transformer_models.names()], built)


def built(name: str) -> tuple[nn.Module, Inputs]:
    """Return a network, and inputs for it."""
    model, _, attention = name.partition(":")
    if model in transformer_models.MODELS:
        return transformer_models.built(model, attention)
    network = timm.create_model(name, pretrained=False, num_classes=10)
    return network, torch.randn(2, *network.default_cfg["input_size"])


if __name__ == "__main__":
    main()
