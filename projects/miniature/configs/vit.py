# The paper's Table 7: a plain ViT with the layers, channels, heads, MLP ratio and
# number of tokens of psvit.py, trained the same way.
_base_ = './psvit.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=8, num_heads=2, feedforward_channels=192),
        img_size=64,
        patch_size=16,
        qkv_bias=False,
    ),
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.pos_embed': dict(decay_mult=0.0)})
)
