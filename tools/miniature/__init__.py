# Copyright (c) mmpsvit contributors.
