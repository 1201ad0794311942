# A ViT with B/14's CNN stem: the feature map is cut into patches of 4 x 4 pixels, and
# all 14 layers are encoder. Not in the paper: it tells what the stem contributes.
_base_ = '../b14.py'

model = dict(
    backbone=dict(
        sampler=dict(
            _delete_=True,
            type='mmpsvit.PatchSampling',
            num_iters=0,
            patch_size=4,
            num_points=14,  # 14 x 14 patches at 224 px
        ),
    ),
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.pos_embed': dict(decay_mult=0.0)})
)
