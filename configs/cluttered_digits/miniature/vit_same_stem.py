# A ViT with the CNN stem of psvit.py: the feature map of stride 4 is cut into as many
# patches as there are points, and all layers are encoder. Not in the paper.
_base_ = './psvit.py'

model = dict(
    backbone=dict(
        sampler=dict(
            _delete_=True,
            type='mmpsvit.PatchSampling',
            num_iters=0,
            patch_size=_base_.canvas // 4 // _base_.num_points,
            num_points=_base_.num_points,
        ),
    ),
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.pos_embed': dict(decay_mult=0.0)})
)
