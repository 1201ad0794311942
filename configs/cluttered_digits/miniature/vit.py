# The paper's Table 7: a plain ViT with the layers, channels, heads, MLP ratio and
# number of tokens of psvit.py, trained the same way.
_base_ = './psvit.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(
            embed_dims=_base_.embed_dims,
            num_layers=_base_.num_layers,
            num_heads=_base_.num_heads,
            feedforward_channels=3 * _base_.embed_dims,
        ),
        img_size=_base_.canvas,
        patch_size=_base_.canvas // _base_.num_points,
        qkv_bias=False,
    ),
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.pos_embed': dict(decay_mult=0.0)})
)
