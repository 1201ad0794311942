# PS-ViT-B/24 at 384 px, fine-tuned from a classifier of ../b14.py: one point per 16 px,
# as at 224. Not in the paper. Epochs, learning rate (constant after the warm-up),
# weight decay and the batch of 512 are those of DeiT-B at 384 px
# (github.com/facebookresearch/deit, README_deit.md).
_base_ = '../b14.py'

load_from = None  # a checkpoint of ../b14.py, or of any other number of points

model = dict(backbone=dict(sampler=dict(num_points=24)))

train_pipeline = [
    _base_.train_pipeline[0],
    dict(
        _base_.train_pipeline[1],
        transforms=[
            [dict(crop, scale=384)] for (crop,) in _base_.train_pipeline[1].transforms
        ],
    ),
    *_base_.train_pipeline[2:],
]
test_pipeline = [
    _base_.test_pipeline[0],
    # The whole shorter side, as timm tests DeiT at 384 px.
    dict(_base_.test_pipeline[1], scale=384),
    dict(_base_.test_pipeline[2], crop_size=384),
    _base_.test_pipeline[3],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = [dict(_base_.param_scheduler[0], start_factor=0.2, end=5)]
train_cfg = dict(max_epochs=30)
