"""The Trainer of transformers with the callback: what is observed, refused, saved and resumed."""

from __future__ import annotations

import pytest
import torch
from tiny_llama import tiny_llama
from torch import nn
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

import hybridkit
from hybridkit.errors import FileError, UsageError
from hybridkit.integrations.folders import save_pretrained
from hybridkit.integrations.transformers import HybridCallback
from hybridkit.quant.checkpoint import open_tensors
from hybridkit.quant.convert import convert
from hybridkit.quant.frozen import freeze_codes_, parse_trainable
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.recorded import read_record
from hybridkit.runtime.modules import load_packed
from hybridkit.sources.recorded import as_recorded


def arguments(folder, **how) -> TrainingArguments:
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
    }
    return TrainingArguments(str(folder), **{**settings, **how})


def made(folder, blocks, *, network=None, ramp=None, hybrid=None, trainer=None, **how) -> Trainer:
    network = network or hybridkit.prepare_qat(tiny_llama())
    optimizer = hybridkit.hybrid_optimizer(network, **(hybrid or {}))
    also = {"eval_dataset": blocks[:8]} if "eval_strategy" in how else {}
    result = Trainer(
        network,
        arguments(folder, **how),
        train_dataset=blocks,
        optimizers=(optimizer, None),
        **also,
        **(trainer or {}),
    )
    result.add_callback(HybridCallback(result, ramp))
    return result


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def smooth(output, labels, num_items_in_batch=None):
    logits = output.logits[:, :-1].flatten(0, 1)
    total = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), label_smoothing=0.2, reduction="sum")
    return total / num_items_in_batch


@pytest.mark.parametrize(
    ("how", "extra"),
    [
        ({}, {}),
        ({"gradient_accumulation_steps": 3}, {}),
        ({"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1}, {}),
        ({"gradient_accumulation_steps": 2}, {"compute_loss_func": smooth}),
        ({"bf16": True}, {}),
        ({"eval_strategy": "steps", "eval_steps": 1}, {}),
        ({"gradient_checkpointing": True}, {}),
    ],
    ids=["plain", "accumulated", "smoothed", "own-loss", "bf16", "evaluated", "checkpointing"],
)
def test_it_observes_the_loss_of_each_step_once(tmp_path, blocks, monkeypatch, how, extra):
    trainer = made(tmp_path, blocks, trainer=extra, **how)
    seen = []
    observe = trainer.optimizer.observe
    monkeypatch.setattr(trainer.optimizer, "observe", lambda loss: (seen.append(float(loss)), observe(loss)))
    trainer.train()
    assert seen == pytest.approx(losses(trainer), abs=2e-4)  # which are rounded
    assert trainer.optimizer.optimizer.step_number == 4


def test_evaluation_changes_no_step(tmp_path, blocks):
    plain = made(tmp_path / "a", blocks, seed=1)
    plain.train()
    evaluated = made(tmp_path / "b", blocks, seed=1, eval_strategy="steps", eval_steps=1)
    evaluated.train()
    assert losses(evaluated) == losses(plain)


def test_the_ramp_goes_by_the_trainers_steps(tmp_path, blocks):
    trainer, seen = made(tmp_path, blocks, ramp=0.5, max_steps=8), []
    layer = next(iter(qat_layers(trainer.model).values()))
    layer.register_forward_hook(lambda *_: seen.append(layer.ramp))
    trainer.train()
    assert seen == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("quantizer", ["ternary-absmean", "ternary-learned"])
def test_a_run_that_was_resumed_has_the_losses_of_one_that_did_not_stop(tmp_path, blocks, quantizer):
    how = {
        "save_strategy": "steps",
        "save_steps": 3,
        "max_steps": 7,
        "gradient_accumulation_steps": 2,
        "seed": 5,
    }

    def fresh() -> Trainer:
        network = hybridkit.prepare_qat(tiny_llama(attention_dropout=0.1), quantizer=quantizer)
        return made(tmp_path, blocks, network=network, **how)

    whole = fresh()
    whole.train()
    resumed = fresh()
    with torch.no_grad():
        for p in resumed.model.parameters():
            p.add_(1)  # so that the checkpoint alone can make it right
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(resumed) == losses(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"quantizer": "ternary-learned"},
        {"quantizer": "ternary-learned", "quantize_all": True},
        {"insert_norms": True},
        {"overrides": {"model.layers.0.*": "binary", "lm_head": {"quantizer": "nbit", "bits": 4}}},
    ],
    ids=["default", "learned", "everything", "norms", "mixed"],
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_packs_as_it_trained(tmp_path, blocks, how, tied):
    if tied and "overrides" in how:
        pytest.skip("a tied head has the quantizer of the embedding")
    network = tiny_llama(tie_word_embeddings=tied)
    if "insert_norms" in how:
        network = hybridkit.prepare_qat(
            network, hybridkit.QuantConfig(**how), example_inputs=(torch.arange(8).view(1, 8),)
        )
    else:
        network = hybridkit.prepare_qat(network, **how)
    trainer = made(tmp_path, blocks, network=network, save_strategy="steps", save_steps=4)
    trainer.train()
    folder = tmp_path / "checkpoint-4"
    latent = LlamaForCausalLM.from_pretrained(folder)
    restored = as_recorded(latent, folder, lambda: open_tensors(folder / "model.safetensors"), ())
    tokens = torch.arange(32).view(1, 32)
    with torch.no_grad():
        expected = network.eval()(tokens).logits
        assert torch.equal(restored.eval()(tokens).logits, expected)
        packed = load_packed(tiny_llama(tie_word_embeddings=tied), convert(restored))
        assert torch.allclose(packed(tokens).logits, expected, atol=1e-4)


def test_a_model_saved_by_the_user_is_on_record_too(tmp_path, blocks):
    trainer = made(tmp_path / "run", blocks)
    trainer.save_model(str(tmp_path / "saved"))
    record = read_record(tmp_path / "saved")
    assert record.layers == dict.fromkeys(qat_layers(trainer.model), "ternary-absmean")


def test_a_checkpoint_of_the_ramp_says_so(tmp_path, blocks):
    trainer = made(tmp_path, blocks, save_strategy="steps", save_steps=2, max_steps=5)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    latent = LlamaForCausalLM.from_pretrained(folder)
    restored = as_recorded(latent, folder, lambda: open_tensors(folder / "model.safetensors"), ())
    with pytest.raises(UsageError, match="on the ramp"):
        convert(restored)


def test_a_checkpoint_without_what_was_learned_is_refused(tmp_path):
    network = hybridkit.prepare_qat(tiny_llama(), quantizer="ternary-learned")
    save_pretrained(network, tmp_path)
    with pytest.raises(FileError, match=r"lack .*quantizer_parameters"):
        as_recorded(tiny_llama(), tmp_path, dict, ())


def test_plain_quantised_training_with_the_trainers_own_optimizer(tmp_path, blocks):
    network = hybridkit.prepare_qat(tiny_llama())
    trainer = Trainer(network, arguments(tmp_path, lr_scheduler_type="linear"), train_dataset=blocks)
    trainer.add_callback(HybridCallback(trainer))
    trainer.train()
    assert {layer.ramp for layer in qat_layers(network).values()} == {1}
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize("controller", ["relative-step", "wsd", "cosine", "aux-nn"])
def test_a_schedule_that_would_multiply_is_refused(tmp_path, blocks, controller):
    with pytest.raises(UsageError, match=r"two schedules.*constant"):
        made(tmp_path, blocks, hybrid={"lr_controller": controller}, lr_scheduler_type="linear")


@pytest.mark.parametrize("controller", [None, "hypergradient"])
def test_a_schedule_beside_none_is_fine(tmp_path, blocks, controller):
    trainer = made(tmp_path, blocks, hybrid={"lr_controller": controller}, lr_scheduler_type="linear")
    trainer.train()
    assert trainer.optimizer.optimizer.step_number == 4


def test_a_plan_of_another_length_is_refused(tmp_path, blocks):
    with pytest.raises(UsageError, match="plans 9 steps and the trainer takes 4"):
        made(tmp_path, blocks, hybrid={"max_steps": 9}).train()


def test_a_plan_is_as_long_as_the_run(tmp_path, blocks):
    trainer = made(tmp_path, blocks[:12], max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert trainer.optimizer.optimizer.max_steps == 6
    with pytest.raises(UsageError, match="make a new one"):
        trainer.train()


def test_weight_decay_of_what_quantizers_learn_is_refused(tmp_path, blocks):
    network = hybridkit.prepare_qat(tiny_llama(), quantizer="ternary-learned")
    trainer = Trainer(network, arguments(tmp_path, weight_decay=0.1), train_dataset=blocks)
    with pytest.raises(UsageError, match="weight_decay=0"):
        HybridCallback(trainer)


@pytest.mark.parametrize("ramp", [-0.1, 1.5])
def test_a_ramp_is_a_share(tmp_path, blocks, ramp):
    with pytest.raises(UsageError, match="from 0 to 1"):
        made(tmp_path, blocks, ramp=ramp).train()


def test_what_cannot_be_recorded_is_refused_before_the_run(tmp_path, blocks):
    layer = next(iter(qat_layers(hybridkit.prepare_qat(tiny_llama())).values()))
    network = hybridkit.prepare_qat(tiny_llama(), quantizer=layer.quantizer)
    with pytest.raises(UsageError, match="name the quantizer"):
        made(tmp_path, blocks, network=network)
    frozen = hybridkit.prepare_qat(tiny_llama())
    freeze_codes_(frozen, parse_trainable("scales"))
    with pytest.raises(UsageError, match="frozen codes"):
        made(tmp_path, blocks, network=frozen)
