# The sampling neck on its own: behind the first stage of MMPretrain's ResNet-18, under
# a classifier over the mean of the tokens. Not in the paper; nobody has trained it.
_base_ = '../b14.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        num_stages=1,
        strides=(1,),
        dilations=(1,),
        out_indices=(0,),
        zero_init_residual=False,  # as in PS-ViT's own stem
    ),
    neck=dict(
        type='mmpsvit.ProgressiveSampling',
        in_channels=64,
        embed_dims=192,
        num_heads=3,
        feedforward_channels=576,
        num_points=14,
        num_iters=4,
        drop_path_rate=0.1,
    ),
    head=dict(in_channels=192, pool='mean'),
)
