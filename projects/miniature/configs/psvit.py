# PS-ViT-B/14 scaled down to 4 x 4 points on 64 px; a cell of the start grid has 16 px,
# as there. Data:
#   python tools/dataset_converters/make_cluttered_digits.py data/miniature/64 \
#       --size 64 --digit-size 20 --num-clutter 8 --num-val 2000
_base_ = '../../../configs/cluttered_digits/psvit.py'

# In full, so that no change of the demonstration changes an experiment.
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=64,
            num_layers=8,  # iterations and encoder layers together
            num_heads=2,
            feedforward_channels=192,
            stem_base_channels=32,
            stem_channels=(64, 64),
        ),
        sampler=dict(
            _delete_=True,
            type='mmpsvit.ProgressiveSampling',
            num_iters=4,
            num_points=4,  # per side
        ),
    ),
    head=dict(in_channels=64),
)

data = dict(batch_size=64, dataset=dict(data_root='data/miniature/64'))
train_dataloader = data
val_dataloader = data
test_dataloader = data

optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(max_iters=1000, val_interval=100)
