"""Runs that learn from a teacher: hidden states, attention, embeddings; its own start; block by block."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import teach_task
import torch
from same_run import assert_same_run, logged
from torch import nn

from hybridkit.blocks import main_blocks
from hybridkit.errors import FileError, UsageError
from hybridkit.quant.layers import qat_layers
from hybridkit.tasks.data import size
from hybridkit.tasks.models.transformer import Shape, Transformer
from hybridkit.tasks.protocol import forward
from hybridkit.training.config import TrainConfig, resolve
from hybridkit.training.distillation.layers import projections
from hybridkit.training.distillation.losses import embedding_loss, hidden_loss, relation_loss
from hybridkit.training.distillation.teaching import Teaching
from hybridkit.training.estimate import estimate
from hybridkit.training.loop import resume, train
from hybridkit.training.metrics import read_records
from hybridkit.training.trainer import Trainer

CLASSIFY, EMBED = "teach_task:classify", "teach_task:embed"
TERNARY = {"qat": True, "ternary": True, "batch_size": 16, "checkpoint_every": 4}


def config(task: str = CLASSIFY, **flags: Any) -> TrainConfig:
    return resolve(**{"task": task, "max_steps": 8, **TERNARY, **flags})


def batch() -> dict[str, torch.Tensor]:
    return {name: part[:5] for name, part in teach_task.splits().train.items()}


def test_terms_are_those_of_the_layers_that_the_hooks_see() -> None:
    """By hand: block by block, with the projections applied to what their blocks' norms give."""
    task, student, teacher, sample = (
        teach_task.classify(),
        teach_task.Reader(),
        teach_task.deep().eval(),
        batch(),
    )
    student.dropout.p = 0.0
    mask = sample["attention_mask"]
    teaching = Teaching(task, teacher, student, {"hidden": 1, "attention": 1, "embedding": 1})
    found = teaching(forward(task, student, sample), sample)

    def by_hand(network: nn.Module, wanted: list[int]) -> tuple[list[Any], list[Any]]:
        x, hidden, parts = network.words(sample["input_ids"]), [], []
        for block in network.blocks:
            normed = block.attention_norm(x)
            parts.append([getattr(block.attention, part)(normed) for part in ("query", "key", "value")])
            x = block(x)
            hidden.append(x)
        return [hidden[i] for i in wanted], [parts[i] for i in wanted]

    (ours, our_parts), (theirs, their_parts) = by_hand(student, [0, 1]), by_hand(teacher, [1, 3])
    hidden = [hidden_loss(s, t, mask) for s, t in zip(ours, theirs, strict=True)]
    relations = [
        relation_loss(s, t, mask)
        for a, b in zip(our_parts, their_parts, strict=True)
        for s, t in zip(a, b, strict=True)
    ]
    means = [(x[-1] * mask[..., None]).sum(1) / mask.sum(1)[:, None] for x in (ours, theirs)]
    torch.testing.assert_close(found["hidden"], torch.stack(hidden).mean())
    torch.testing.assert_close(found["attention"], torch.stack(relations).mean())
    torch.testing.assert_close(found["embedding"], embedding_loss(*means))


def test_the_default_is_logits_alone() -> None:
    found = []
    for more in ({}, {"distil": "logits"}):
        trainer = Trainer.seeded(config(teacher="teach_task:deep", **more))
        found.append([{**trainer.step(), "seconds": 0} for _ in range(3)])
    assert found[0] == found[1]
    assert all(values["distil_logits"] > 0 for values in found[0])


def test_each_term_is_logged(tmp_path: Path) -> None:
    terms = "logits,hidden:2,attention,embedding:0.5"
    run = train(config(teacher="teach_task:deep", distil=terms), run_dir=tmp_path).run
    steps = [record for record in logged(run) if record["event"] == "step"]
    for record in steps:
        names = ("distil_logits", "distil_hidden", "distil_attention", "distil_embedding")
        assert all(record[name] > 0 for name in names)


def test_hidden_states_come_closer_to_the_teachers() -> None:
    trainer = Trainer.seeded(
        config(teacher="self", distil="hidden,embedding", alpha=0.0, max_steps=40, lr=3e-3)
    )
    steps = [trainer.step() for _ in range(40)]
    assert steps[-1]["distil_hidden"] < 0.85 * steps[0]["distil_hidden"]


def test_widths_may_differ(tmp_path: Path) -> None:
    """The map between them is no part of the network, and a resumed run goes on with it."""
    flags = {"teacher": "teach_task:wide", "distil": "hidden,attention"}
    whole = train(config(**flags), run_dir=tmp_path / "a").run
    again = train(config(**flags), run_dir=tmp_path / "b").run
    state = again.checkpoint(4).state["distillation"]
    assert set(state) == {"0", "1"}
    assert not any("gram" in name for name in again.checkpoint(4).model)
    resume(again, step=4, trusted={CLASSIFY, "teach_task:wide"})
    assert_same_run(whole, again)


def test_the_layer_map_says_which_blocks_go_together() -> None:
    task, student, teacher = teach_task.classify(), teach_task.Reader(), teach_task.deep()
    teaching = Teaching(task, teacher, student, {"hidden": 1}, layer_map=((0, 2),))
    assert teaching.pairs == [(student.blocks[0], teacher.blocks[2])]
    with pytest.raises(UsageError, match="the student has blocks 0 to 1, the teacher 0 to 3"):
        Teaching(task, teacher, student, {"hidden": 1}, layer_map=((0, 4),))


def test_a_task_without_a_loss_of_its_own_learns_from_the_teacher_alone() -> None:
    trainer = Trainer.seeded(config(EMBED, teacher="self"))
    assert trainer.model.dropout.p == 0
    values = trainer.step()
    found = trainer.evaluate()
    assert found["loss"] == pytest.approx(1 - found["teacher_cosine"])
    sample, network = teach_task.splits().validation, trainer.objective.teacher
    inputs = {name: sample[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        pair = [each(**inputs)["embedding"] for each in (trainer.model.eval(), network)]
    expected = torch.nn.functional.cosine_similarity(*pair).mean()
    assert found["teacher_cosine"] == pytest.approx(float(expected), abs=1e-5)
    expected = values["distil_hidden"] + 0.1 * values["distil_embedding"]
    assert values["loss"] == pytest.approx(expected, rel=1e-6)


def test_what_is_packed_is_compared_with_the_teacher_too(tmp_path: Path) -> None:
    run = train(config(EMBED, teacher="self", activations="float"), run_dir=tmp_path).run
    final = read_records(run.metrics_path)[-1]
    assert final["event"] == "final"
    assert 0 < final["test_teacher_cosine"] < 1
    assert final["packed_test_teacher_cosine"] == pytest.approx(final["test_teacher_cosine"], abs=1e-4)
    assert final["packed_test_loss"] == pytest.approx(1 - final["packed_test_teacher_cosine"])


def test_logits_are_compared_with_the_teachers() -> None:
    trainer = Trainer.seeded(config(teacher="teach_task:wide"))
    found, sample = trainer.evaluate(), teach_task.splits().validation
    with torch.no_grad():
        networks = (trainer.model.eval(), trainer.objective.teacher)
        ours, theirs = (forward(trainer.task, each, sample)["logits"].softmax(-1) for each in networks)
    expected = (theirs * (theirs / ours).log()).sum(-1).mean()
    assert found["teacher_kl"] == pytest.approx(float(expected), rel=1e-4)
    assert found["teacher_top1"] == pytest.approx(
        float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    )
    silent = Trainer.seeded(config(teacher="teach_task:wide", distil="hidden")).evaluate()
    assert not {"teacher_kl", "teacher_cosine"} & set(silent)


def test_a_pretrained_teacher_gets_the_tasks_head(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    teacher = Trainer.seeded(config(EMBED, teacher=str(tmp_path))).objective.teacher
    torch.manual_seed(3)
    expected = teach_task.embedder().state_dict()
    assert teacher is not None
    assert all(torch.equal(tensor, expected[name]) for name, tensor in teacher.state_dict().items())


def test_the_teacher_runs_once_for_each_batch() -> None:
    trainer = Trainer.seeded(config(teacher="self", distil="logits,hidden,attention,embedding"))
    runs: list[Any] = []
    assert trainer.objective.teacher is not None
    trainer.objective.teacher.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    trainer.step()
    assert runs == [False]
    trainer.evaluate()
    assert runs == [False] * (1 + math.ceil(size(trainer.task.splits().validation) / 16))
    assert not trainer.objective.teacher.training


def test_an_estimate_counts_the_teacher() -> None:
    alone, taught = (estimate(config(**more)) for more in ({}, {"teacher": "teach_task:wide"}))
    teacher = sum(tensor.nbytes for tensor in teach_task.wide().state_dict().values())
    assert taught.memory_bytes == alone.memory_bytes + teacher


def test_accumulated_batches_and_autocast_are_taught_too() -> None:
    flags = {"teacher": "self", "distil": "logits,hidden,attention,embedding"}
    trainer = Trainer.seeded(config(**flags, accumulate=3, precision="bf16"))
    runs: list[Any] = []
    assert trainer.objective.teacher is not None
    trainer.objective.teacher.register_forward_hook(lambda *_: runs.append(1))
    assert trainer.step()["distil_attention"] > 0
    assert len(runs) == 3


def test_checkpointed_activations_change_nothing() -> None:
    found = []
    for more in (False, True):
        trainer = Trainer.seeded(
            config(teacher="self", distil="hidden,attention", checkpoint_activations=more)
        )
        found.append([trainer.step()["loss"] for _ in range(3)])
    assert found[0] == found[1]


def test_self_is_the_network_before_it_was_quantised(tmp_path: Path) -> None:
    first = train(config(qat=False, ternary=False), run_dir=tmp_path).run
    trainer = Trainer.seeded(config(teacher="self", init_from=str(first.path)))
    teacher, weights = trainer.objective.teacher, first.checkpoint().model
    assert teacher is not None
    assert qat_layers(trainer.model)
    assert not qat_layers(teacher)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())
    trainer.step()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_that_learns_from_its_own_start_goes_on_to_the_bit(tmp_path: Path, dtype: str) -> None:
    flags = {"teacher": "self", "teacher_dtype": dtype, "distil": "logits,hidden,attention"}
    whole = train(config(**flags), run_dir=tmp_path / "a").run
    again = train(config(**flags), run_dir=tmp_path / "b").run
    resume(again, step=4, trusted={CLASSIFY})
    assert_same_run(whole, again)
    assert not any("teacher" in str(path) for path in again.checkpoints.rglob("*"))
    again.teacher_path.unlink()
    with pytest.raises(FileError, match=r"teacher\.safetensors is missing"):
        resume(again, step=4, trusted={CLASSIFY})


def test_a_smaller_teacher_dtype_changes_its_weights_and_its_inputs() -> None:
    trainer = Trainer.seeded(config(teacher="self", teacher_dtype="bf16", distil="hidden"))
    teacher = trainer.objective.teacher
    assert teacher is not None
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.step()["distil_hidden"] > 0


def test_block_by_block_then_end_to_end() -> None:
    """In a block's stage nothing but that block moves, and nothing behind it runs."""
    trainer = Trainer.seeded(config(teacher="self", progressive=True, max_steps=8))
    blocks, runs = main_blocks(trainer.model), []
    for place, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, place=place: runs.append(place))
    for stage in ([0], [0], [0, 1], [0, 1]):
        before, runs[:] = copy.deepcopy(trainer.model.state_dict()), []
        values = trainer.step()
        assert values["distil_block"] == values["loss"]
        moved = [name for name, x in trainer.model.state_dict().items() if not torch.equal(x, before[name])]
        assert moved
        assert all(name.startswith(f"blocks.{stage[-1]}.") for name in moved)
        assert [place for place in runs if place != stage[-1]] == stage[:-1]
    before = copy.deepcopy(trainer.model.state_dict())
    assert "distil_logits" in trainer.step()
    assert not torch.equal(trainer.model.state_dict()["head.weight"], before["head.weight"])


def test_a_progressive_run_has_a_checkpoint_for_each_block_and_goes_on_there(tmp_path: Path) -> None:
    flags = {"teacher": "self", "progressive": True, "max_steps": 12, "keep_checkpoints": 10}
    flags |= {"checkpoint_every": 100}
    whole = train(config(**flags), run_dir=tmp_path / "a").run
    again = train(config(**flags), run_dir=tmp_path / "b").run
    resume(again, step=3, trusted={CLASSIFY})
    assert_same_run(whole, again)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"distil": "hidden"}, "--distil needs --teacher"),
        ({"progressive": True}, "--progressive needs --teacher"),
        ({"teacher": "self", "distil": "hiden"}, "did you mean 'hidden'"),
        ({"teacher": "self", "layer_map": "0"}, "no pair"),
        ({"teacher": "self", "layer_map": "0:7", "distil": "hidden"}, "the teacher 0 to 1"),
        ({"teacher": "self", "progressive": True, "max_steps": 3}, "train longer"),
        ({"teacher": "self", "distil": "hidden", "compile": True}, "--compile sees no layer"),
    ],
)
def test_flags_that_do_not_fit(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Trainer.seeded(config(**flags))


def test_networks_without_blocks_or_attention_say_so() -> None:
    task = teach_task.classify()
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(UsageError, match="no repeated blocks"):
        Teaching(task, plain, plain, {"hidden": 1})
    with pytest.raises(UsageError, match="has no layers named query, key and value"):
        projections(nn.TransformerDecoder(nn.Linear(2, 2), 1))


def test_blocks_of_other_networks() -> None:
    """Ours, and those of transformers: what hooks see is what it calls hidden states."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

    small = {"vocab_size": 30, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = Transformer(Shape(width=64, layers=3, heads=2, kv_heads=1, hidden=64, vocabulary=30))
    networks = [
        text,
        BertModel(BertConfig(**small, intermediate_size=64)),
        LlamaModel(LlamaConfig(**small, num_key_value_heads=1, intermediate_size=64)),
        GPT2Model(GPT2Config(vocab_size=30, n_embd=64, n_layer=3, n_head=2)),
    ]
    ids = torch.randint(0, 30, (2, 5))
    for network in networks:
        blocks = main_blocks(network.eval())
        assert len(blocks) == 3
        found = projections(blocks[0])
        joined = found["query"].layer is found["value"].layer
        assert joined == isinstance(network, GPT2Model)
        seen: list[Any] = []
        hook = blocks[0].register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))
        output = network(ids) if network is text else network(input_ids=ids, output_hidden_states=True)
        hook.remove()
        if network is not text:
            hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
            assert torch.equal(hidden, output.hidden_states[1])
