# A plain ViT as in vit_same_hparams.py, whose patches are not cut from the image but
# from the map of B/14's CNN stem. Not in the paper: it tells what the stem contributes.
_base_ = './vit_same_hparams.py'

model = dict(
    backbone=dict(patch_cfg=dict(conv_type='mmpsvit.StemPatchEmbedding')),
)
