# DeiT's practice of fine-tuning, as its author gives it for CIFAR-10 and Stanford Cars
# (github.com/facebookresearch/deit, issue 45): SGD, lr 0.01, batch 768, weight decay
# 1e-4, 1000 epochs of a cosine, no average of the weights. The paper names DeiT's
# practice and no more. The warm-up is the ImageNet recipe's.
_base_ = './imagenet_bs512_adamw_300e.py'

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        _scope_='mmpretrain',
        type='SGD',
        lr=0.01,  # for a total batch of 768
        momentum=0.9,
        nesterov=True,  # as timm's 'sgd', which DeiT's code asks for
        weight_decay=1e-4,
    ),
)
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-4),
    _base_.param_scheduler[1],
]
train_cfg = dict(max_epochs=1000)
auto_scale_lr = dict(base_batch_size=768)
