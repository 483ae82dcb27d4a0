"""Lightning's Trainer with the callback: what is observed, what is refused, what lies beside a checkpoint."""

from __future__ import annotations

import pytest

lightning = pytest.importorskip("lightning")

import torch  # noqa: E402 - what follows needs lightning
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from tiny_llama import tiny_llama  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import hybridkit  # noqa: E402
from hybridkit.cli import run  # noqa: E402
from hybridkit.errors import UsageError  # noqa: E402
from hybridkit.integrations.lightning import HybridCallback  # noqa: E402
from hybridkit.packing.model import PackedModel  # noqa: E402
from hybridkit.quant.layers import qat_layers  # noqa: E402
from hybridkit.runtime.modules import load_packed  # noqa: E402


class Text(lightning.LightningModule):
    def __init__(self, network=None, scheduler=False, manual=False, **hybrid):
        super().__init__()
        self.network = network or hybridkit.prepare_qat(tiny_llama())
        self.scheduler, self.hybrid = scheduler, hybrid
        self.automatic_optimization = not manual
        self.losses, self.observed = [], []

    def training_step(self, batch, index):
        loss = self.network(**batch).loss
        self.losses.append(float(loss.detach()))
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def on_train_batch_end(self, *_):
        for optimizer in self.trainer.optimizers:
            self.observed.append(optimizer.last_step.get("loss"))

    def configure_optimizers(self):
        optimizer = hybridkit.hybrid_optimizer(self.network, **self.hybrid)
        if not self.scheduler:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer)]


class Two(Text):
    def configure_optimizers(self):
        return [super(Two, self).configure_optimizers() for _ in range(2)]


def fit(folder, blocks, module, *, ramp=None, name=None, ckpt_path=None, callbacks=(), **how):
    settings = {"max_steps": 6, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        default_root_dir=folder, callbacks=[HybridCallback(name, ramp), *callbacks], **{**settings, **how}
    )
    trainer.fit(module, DataLoader(blocks, batch_size=4), ckpt_path=ckpt_path)
    return trainer


def every_step(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_observes_the_loss_of_each_step(tmp_path, blocks, precision):
    module = Text()
    fit(tmp_path, blocks, module, precision=precision)
    assert module.observed == pytest.approx(module.losses, rel=1e-6)


def test_accumulated_losses_are_averaged(tmp_path, blocks):
    module = Text()
    fit(tmp_path, blocks, module, accumulate_grad_batches=3)
    means = [sum(module.losses[i : i + 3]) / 3 for i in range(0, 18, 3)]
    assert module.observed[2::3] == pytest.approx(means, rel=1e-6)


def test_a_loop_that_steps_by_hand_is_observed_too(tmp_path, blocks):
    module = Text(manual=True)
    fit(tmp_path, blocks, module)
    assert module.observed == pytest.approx(module.losses, rel=1e-6)


def test_a_loss_that_was_scaled_for_fp16_is_observed_as_it_was(tmp_path, blocks, monkeypatch):
    from lightning.pytorch.plugins.precision import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    monkeypatch.setattr(torch, "half", torch.bfloat16)  # what a CPU multiplies in
    module = Text()
    fit(tmp_path, blocks, module, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert module.observed == pytest.approx(module.losses, rel=1e-6)


def test_the_ramp_goes_by_steps_and_not_by_batches(tmp_path, blocks):
    module, seen = Text(), []
    layer = next(iter(qat_layers(module).values()))
    layer.register_forward_hook(lambda *_: seen.append(layer.ramp))
    fit(tmp_path, blocks, module, accumulate_grad_batches=2, max_steps=4)
    assert seen == pytest.approx([0.3125, 0.3125, 0.625, 0.625, 0.9375, 0.9375, 1, 1])


def test_a_run_that_was_resumed_has_the_losses_of_one_that_did_not_stop(tmp_path, blocks):
    one_batch = blocks[:4]  # where Lightning goes on in the data is its own affair
    whole, saved = Text(), ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    fit(tmp_path, one_batch, whole, callbacks=[saved], enable_checkpointing=True)
    resumed = Text()
    fit(tmp_path, one_batch, resumed, ckpt_path=str(tmp_path / "step=3.ckpt"))
    assert resumed.losses == whole.losses[3:]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(256, 32), nn.Linear(32, 32), nn.Linear(32, 256)
        self.head.weight = self.table.weight

    def forward(self, input_ids, labels=None):
        logits = self.head(torch.relu(self.body(self.table(input_ids))))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        return type("Output", (), {"logits": logits, "loss": loss})


@pytest.mark.parametrize("quantizer", ["ternary-absmean", "ternary-learned"])
def test_a_network_of_ones_own_packs_by_its_factory(tmp_path, blocks, monkeypatch, quantizer):
    (tmp_path / "plain_factory.py").write_text("from test_lightning import Plain\n")
    monkeypatch.chdir(tmp_path)
    module = Text(hybridkit.prepare_qat(Plain(), quantizer=quantizer, quantize_all=True))
    fit(tmp_path, blocks, module, callbacks=[every_step(tmp_path)], enable_checkpointing=True)
    source = str(tmp_path / "step=6.hybridkit" / "model.safetensors")
    assert run(["quantize", source, "--model", "plain_factory:Plain", "-o", "out.hk.safetensors"]) == 0
    tokens = torch.arange(32).view(1, 32)
    packed = load_packed(Plain(), PackedModel.load("out.hk.safetensors"))
    with torch.no_grad():
        expected = module.network.eval()(tokens).logits
        assert torch.allclose(packed(tokens).logits, expected, atol=1e-4)


def test_what_lies_beside_a_checkpoint_goes_with_it(tmp_path, blocks):
    kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2)
    fit(tmp_path, blocks, Text(), callbacks=[kept], enable_checkpointing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=6.ckpt", "step=6.hybridkit"]


def test_a_network_without_quantised_layers_has_nothing_beside(tmp_path, blocks):
    fit(tmp_path, blocks, Text(tiny_llama()), callbacks=[every_step(tmp_path)], enable_checkpointing=True)
    assert not list(tmp_path.glob("*.hybridkit"))


def test_a_scheduler_that_would_multiply_is_refused(tmp_path, blocks):
    with pytest.raises(UsageError, match=r"two schedules.*configure_optimizers"):
        fit(tmp_path, blocks, Text(scheduler=True))
    fit(tmp_path, blocks, Text(scheduler=True, lr_controller=None), max_steps=1)


def test_a_plan_of_another_length_is_refused(tmp_path, blocks):
    with pytest.raises(UsageError, match="plans 9 steps and the trainer takes 6"):
        fit(tmp_path, blocks, Text(max_steps=9))


def test_several_optimizers_are_refused(tmp_path, blocks):
    with pytest.raises(UsageError, match="several HybridOptimizers"):
        fit(tmp_path, blocks, Two(manual=True))


def test_a_ramp_in_a_run_without_end_is_refused(tmp_path, blocks):
    with pytest.raises(UsageError, match="length of the run"):
        fit(tmp_path, blocks, Text(), max_steps=-1, max_epochs=-1)
