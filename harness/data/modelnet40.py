"""ModelNet40: CAD models of 40 classes, in the release with 2048 points per cloud (h5 files).

Wu et al., CVPR 2015. The papers start from 8192-point clouds; the readers of those releases come later, and rows of
different stored points are different data (their digests differ).
"""

from __future__ import annotations

from harness.data.scanobjectnn import H5Dataset

CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)  # fmt: skip

MODELNET40 = H5Dataset(
    name="modelnet40",
    version=1,
    classes=CLASSES,
    train_items=9840,
    test_items=2468,
    points=2048,
    up="y",
    normalised=True,  # in the release; they are used as stored
    licence="ModelNet terms of use (academic research)",
    source="Get modelnet40_ply_hdf5_2048.zip and unpack it so that modelnet40_ply_hdf5_2048/ lies in the data "
    "folder (HARNESS_DATA).",
    folder="modelnet40_ply_hdf5_2048",
    train_files=tuple(f"ply_data_train{index}.h5" for index in range(5)),
    test_files=tuple(f"ply_data_test{index}.h5" for index in range(2)),
)
