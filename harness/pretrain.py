"""Pre-training of a Point-MAE encoder on any set of point clouds: masked autoencoding with a Chamfer loss.

Pang et al., ECCV 2022, arXiv 2203.06604, section 3. Most patches are hidden; the encoder sees the others, a light
decoder predicts the points of the hidden ones. What is kept is the encoder, as float16 safetensors, with the recipe,
the loss curve and digests beside it.

    harness pretrain --data points.safetensors --preset tiny --epochs 100 --output weights/
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from harness import __version__, registry
from harness.atomic import read_json, write_atomically
from harness.data.augment import rotate, scale_translate
from harness.errors import UserError
from harness.geometry import gather_points, group
from harness.models.encoder import PlainEncoder
from harness.models.manifest import NAME, Manifest, Source
from harness.models.point_mae import PointMAE
from harness.models.tokenizer import PositionEmbedding
from harness.models.transformer import Block, Tokens
from harness.models.weights import WEIGHTS
from harness.optimizer import AdamW
from harness.processor import prepare


@dataclass(frozen=True)
class Recipe:
    """Settings of a pre-training run."""

    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.04
    """Fraction of all steps."""
    mask: float = 0.6
    """Fraction of patches hidden."""
    decoder_depth: int = 2
    drop_path: float = 0.0
    """Of the encoder."""
    rotate: bool = True
    """Clouds are turned about the vertical, beside being scaled and shifted."""
    clip_norm: float = 5.0
    seed: int = 0


class MaskedAutoencoder(nn.Module):
    """Encoder on the visible patches, decoder on all; predicts the points of the hidden ones."""

    def __init__(self, encoder: PlainEncoder, *, mask: float, decoder_depth: int) -> None:
        super().__init__()
        self.encoder, self.hidden = encoder, int(mask * encoder.groups)
        dim = encoder.dim
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.decoder_position = PositionEmbedding(dim=dim)
        self.decoder = nn.ModuleList(Block(dim=dim, heads=encoder.heads) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, 3 * encoder.group_size)

    def forward(self, points: Tensor, generator: torch.Generator) -> Tensor:
        """Points (B, N, 3) -> mean Chamfer distance over the hidden patches (scalar)."""
        encoder, batch = self.encoder, len(points)
        start = torch.randint(points.shape[1], (batch,), generator=generator, device=points.device)
        patches = group(points, encoder.groups, encoder.group_size, start=start)
        order = torch.rand(batch, encoder.groups, generator=generator, device=points.device).argsort(1)
        hidden, visible = order[:, : self.hidden], order[:, self.hidden :]

        neighbourhoods = patches.neighbourhoods.flatten(2)  # (B, G, 3M)
        shown = gather_points(neighbourhoods, visible).unflatten(2, (-1, 3))
        centers = gather_points(patches.centers, visible)
        tokens = Tokens(encoder.tokenizer(shown), encoder.position(centers), centers)
        features = encoder.transform(tokens).features  # (B, V, C)

        places = torch.cat([centers, gather_points(patches.centers, hidden)], dim=1)
        blanks = self.mask_token.expand(batch, self.hidden, -1)
        state = Tokens(torch.cat([features, blanks], dim=1), self.decoder_position(places), places)
        for block in self.decoder:
            state = block(state)
        guess = self.predict(self.norm(state.features[:, -self.hidden :])).view(-1, encoder.group_size, 3)
        truth = gather_points(neighbourhoods, hidden).view(-1, encoder.group_size, 3)
        return chamfer(guess, truth)


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Symmetric mean squared Chamfer distance of point sets (R, M, 3) and (R, N, 3), averaged over R."""
    squared = (a[:, :, None] - b[:, None]).square().sum(-1)  # (R, M, N)
    return squared.amin(2).mean() + squared.amin(1).mean()


def read_points(path: Path) -> Tensor:
    """Clouds (n, N, 3) float32 from a .safetensors file with a tensor `points`, or a .npy file."""
    try:
        if path.suffix == ".npy":
            points = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            points = load_file(path)["points"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{path}: no point set: {error}; expected safetensors with `points`, or .npy") from None
    if points.ndim != 3 or points.shape[-1] != 3:
        raise UserError(f"{path}: expected points of shape (clouds, points, 3), found {tuple(points.shape)}")
    points = points.float()
    if not torch.isfinite(points).all():
        raise UserError(f"{path}: holds NaN or infinite coordinates")
    return points


def pretrain(
    *,
    backbone: PointMAE,
    points: Tensor,
    recipe: Recipe,
    device: str = "cpu",
    report: Callable[[int, float, float], None] = lambda epoch, loss, seconds: None,
) -> tuple[PlainEncoder, list[float]]:
    """Train; returns the encoder and the mean loss of each epoch. `report(epoch, loss, seconds)` after each."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator(device=device).manual_seed(recipe.seed + 1)
    encoder = backbone.build(drop_path=recipe.drop_path)
    model = MaskedAutoencoder(encoder, mask=recipe.mask, decoder_depth=recipe.decoder_depth).to(device)
    trained = [
        p for n, p in model.named_parameters() if p is not encoder.class_token and p is not encoder.class_position
    ]
    exempt = [p for p in trained if p.ndim <= 1 or p is model.mask_token]
    decayed = [p for p in trained if p.ndim > 1 and p is not model.mask_token]
    optimizer = AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": exempt, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    per_epoch = len(points) // recipe.batch_size
    total = per_epoch * recipe.epochs
    warmup = max(1, int(recipe.warmup * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup,
            0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup))),
        ),
    )
    count = backbone.default_points
    clouds, curve, began = points.to(device), [], time.perf_counter()
    model.train()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(clouds), generator=generator, device=device)
        losses = torch.zeros((), device=device)
        for step in range(per_epoch):
            batch = clouds[order[step * recipe.batch_size : (step + 1) * recipe.batch_size]]
            batch = batch[:, torch.randperm(batch.shape[1], generator=generator, device=device)[:count]]
            batch = rotate(batch, generator, up="z") if recipe.rotate else batch
            batch = scale_translate(batch, generator)
            loss = model(batch, generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
            optimizer.step()
            schedule.step()
            losses += loss.detach()
        curve.append(losses.item() / per_epoch)
        if not math.isfinite(curve[-1]):
            raise UserError(f"pre-training diverged in epoch {epoch}: the loss is {curve[-1]}; lower the learning rate")
        report(epoch, curve[-1], time.perf_counter() - began)
    return encoder, curve


def save_encoder(
    encoder: PlainEncoder,
    *,
    name: str,
    folder: Path,
    kind: str,
    backbone: PointMAE,
    recipe: Recipe,
    curve: list[float],
    data: dict[str, Any],
) -> Path:
    """Write NAME.safetensors (float16, without class token) and NAME.json: its manifest, with recipe and loss curve.

    In the folder `weights` of the data folder, suites find them by name. `kind` is the backbone's name.
    """
    state = {
        key: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for key, value in encoder.state_dict().items()
        if key not in ("class_token", "class_position")
    }
    content = save(state, metadata={"name": name, "format": "pointpeft-harness encoder 1"})
    path = folder / f"{name}.safetensors"
    made = Source(
        file=data["file"],
        digest=data["digest"],
        bytes=data["bytes"],
        layout="clouds for harness pretrain",
        guess="",
        container=None,
        used={},
        left={},
        missing={name: "no pre-training has it" for name in ("class_token", "class_position")},
        said={},
        assumed={},
    )
    needed = sorted(backbone.presets["base"].keys() - {"groups", "group_size"})  # patches leave no trace in tensors
    manifest = Manifest(
        name=name,
        backbone=kind,
        requires={key: getattr(backbone, key) for key in needed},
        digest=hashlib.sha256(content).hexdigest(),
        source=made,
        harness=__version__,
        imported=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    card = manifest.model_dump(mode="json") | {
        "settings": backbone.model_dump(mode="json"),
        "recipe": asdict(recipe),
        "data": data,
        "loss": [round(value, 7) for value in curve],
        "torch": torch.__version__,
    }
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), json.dumps(card, indent=1))
    return path


def pretrain_to_file(
    *,
    data: Path,
    name: str,
    folder: Path,
    backbone: str,
    settings: Mapping[str, Any],
    recipe: Recipe,
    threads: int,
    report: Callable[[int, float, float], None],
) -> Path:
    """Pre-train on the clouds in a file and save the encoder. Raises UserError for what cannot work."""
    if not NAME.fullmatch(name) or name in WEIGHTS:
        raise UserError(
            f"--name {name}: may hold letters, digits, '.', '_' and '-' only, 1 to 64 of them, and not be the name of "
            "weights of the harness"
        )
    points = read_points(data)
    try:
        encoder_settings: PointMAE = registry.get("backbones", backbone).model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{backbone} {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    problems = encoder_settings.problems(points.shape[1])
    if len(points) < recipe.batch_size:
        problems.append(f"{len(points)} clouds are fewer than the batch size {recipe.batch_size}")
    if points.shape[1] < encoder_settings.default_points:
        needs = encoder_settings.default_points
        problems.append(f"{points.shape[1]} points per cloud, {backbone} sees {needs} with these settings")
    if problems:
        raise UserError("\n".join(f"{data}: {problem}" for problem in problems))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    prepare(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, curve = pretrain(backbone=encoder_settings, points=points, recipe=recipe, device=device, report=report)
    with data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    described = {
        "file": data.name,
        "digest": digest,
        "bytes": data.stat().st_size,
        "items": len(points),
    }
    card = read_json(data.with_suffix(".json"))
    if isinstance(card, dict):
        described |= {key: card[key] for key in ("name", "version", "source", "excluded") if key in card}
    return save_encoder(
        encoder,
        name=name,
        folder=folder,
        kind=backbone,
        backbone=encoder_settings,
        recipe=recipe,
        curve=curve,
        data=described,
    )
