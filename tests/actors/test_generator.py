"""Both backends behind one interface: transformers on a policy of two layers, vLLM on the real one where marked slow."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.generator import UNPROVEN, VLLM, Generator
from actors.probes import Case
from actors.weights import FILE, read_probe, write_probe
from rhumbline import config
from rhumbline.data.chat import Encoded, encode
from rhumbline.errors import ConfigError, GenerationError, WeightSyncError
from rhumbline.learning.logprobs import response_logprobs, token_logprobs
from rhumbline.learning.policy import load_policy, load_tokenizer, merge_adapter, resolve, save_policy
from tests.engines import running
from tests.fakes import FakeGenerator, query, tiny_policy

SAMPLING = config.Sampling(max_tokens=12)
TOLERANCE = 0.1  # bf16 in vLLM against fp32: 0.035 nats on samples of its own, 0.06 on other text
QUERIES = [
    query("Why is the sky blue?", id="p1", seed=1),
    query("Name three rivers.", id="p2", seed=2),
    query("Hi", id="p3", seed=3),
]


def transformers(folder: Path, **engine: Any) -> Generator:
    generator = Generator(config.Generator(backend="transformers", threads=1, engine=engine), model=str(folder))
    generator.setup()
    return generator


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="module")
def generator(tiny: Path) -> Generator:
    return transformers(tiny)


# --- the environment of an engine -------------------------------------------------------------------------------------


@dataclass
class EngineArgs:
    """As far as the settings of the tests below go."""

    model: str


@pytest.mark.parametrize(
    ("num_gpus", "given", "then"),
    [(1, {}, "1"), (1, {"VLLM_BATCH_INVARIANT": "0"}, "0"), (0, {}, None)],
    ids=["on GPUs", "unless the recipe says otherwise", "not on CPUs, where it always is so"],
)
def test_samples_do_not_depend_on_what_else_is_in_the_batch(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, num_gpus: int, given: dict[str, str], then: str | None
) -> None:
    environment: list[str | None] = []  # as vLLM finds it

    def llm(**_: Any) -> Any:
        environment.append(os.environ.get("VLLM_BATCH_INVARIANT"))
        return SimpleNamespace(model_config=SimpleNamespace(max_model_len=512))

    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm, EngineArgs=EngineArgs))
    VLLM(config.Generator(num_gpus=num_gpus), str(tiny), None, False)
    assert environment == [then]


# --- transformers -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_s_own_way_to_sample_is_left_aside_but_for_where_answers_end(tiny: Path, tmp_path: Path) -> None:
    plain = [c.token_ids for c in transformers(tiny).generate(QUERIES, 4, SAMPLING)]
    other = next(row[-3] for row in plain if len(row) > 5)  # a token that is sampled, and ends answers from now on
    folder = tmp_path / "policy"
    shutil.copytree(tiny, folder)
    own = load_tokenizer(folder).eos_token_id
    said = {"repetition_penalty": 5.0, "top_k": 1, "do_sample": True, "eos_token_id": [own, other]}
    (folder / "generation_config.json").write_text(json.dumps(said))
    found = transformers(folder).generate(QUERIES, 4, SAMPLING)
    until = [next((row[: i + 1] for i, token in enumerate(row) if token in (own, other)), row) for row in plain]
    assert [c.token_ids for c in found] == until  # no padding, no penalty
    assert [c.finish_reason == "stop" for c in found] == [row[-1] in (own, other) for row in until]
    assert any(row[-1] == other for row in until)


def test_what_the_recipe_says_elsewhere_is_no_setting_of_generate(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"generator\.engine\.temperature: .*sampling\.temperature"):
        transformers(tiny, temperature=0.5)
    one = transformers(tiny, top_k=1).generate(QUERIES, 3, SAMPLING)
    assert len({c.token_ids for c in one}) == len(QUERIES)  # which is the likeliest token, every time


def test_a_query_alone_and_in_a_batch_gives_the_same_samples(generator: Generator) -> None:
    together = generator.generate(QUERIES, 3, SAMPLING)
    alone = [c for q in reversed(QUERIES) for c in generator.generate([q], 3, SAMPLING)]
    assert [c.id for c in together] == [f"p{i}/d0/s{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
    assert {c.id: c.token_ids for c in together} == {c.id: c.token_ids for c in alone}
    assert len({c.token_ids for c in together}) > 3  # samples of a query differ
    assert generator.generate([query(seed=1)], 2, SAMPLING) != generator.generate([query(seed=2)], 2, SAMPLING)


def test_a_completion_says_what_was_sampled(generator: Generator, tiny: Path) -> None:
    tokenizer, policy = load_tokenizer(tiny), load_policy(tiny, device="cpu")
    for completion in generator.generate(QUERIES, 2, SAMPLING):
        ended = completion.token_ids[-1] == tokenizer.eos_token_id
        assert completion.finish_reason == ("stop" if ended else "length")
        assert len(completion.token_ids) <= 12
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert completion.policy_version == "initial"
        prompt = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in completion.query.messages],
            add_generation_prompt=True,
            return_dict=False,
        )
        mask = (False,) * len(prompt) + (True,) * len(completion.token_ids)
        (expected,) = response_logprobs(policy, [Encoded(token_ids=(*prompt, *completion.token_ids), loss_mask=mask)])
        assert completion.logprob == pytest.approx(expected, abs=1e-3)


def test_token_log_probabilities_are_given_where_asked_for_and_are_the_terms_of_the_sum(generator: Generator) -> None:
    asked = generator.generate(QUERIES, 2, SAMPLING, token_logprobs=True)
    for completion in asked:
        assert len(completion.token_logprobs) == len(completion.token_ids)
        assert max(completion.token_logprobs) <= 0.0
        assert sum(completion.token_logprobs) == pytest.approx(completion.logprob, abs=1e-9)
    plain = generator.generate(QUERIES, 2, SAMPLING)
    assert [c.token_logprobs for c in plain] == [()] * 6
    assert [(c.token_ids, c.logprob) for c in plain] == [(c.token_ids, c.logprob) for c in asked]


def test_without_temperature_all_samples_are_the_likeliest(generator: Generator) -> None:
    greedy = config.Sampling(max_tokens=6, temperature=0.0)
    first, second = generator.generate(QUERIES[:1], 2, greedy)
    assert first.token_ids == second.token_ids
    assert generator.generate([query(seed=99)], 1, greedy)[0].token_ids == first.token_ids


def test_a_prompt_beyond_the_context_is_an_error_that_names_it(generator: Generator) -> None:
    long = query("why " * 300, id="endless")
    with pytest.raises(GenerationError, match=r"prompt endless has 12\d\d tokens.*context of 512.*max_model_len"):
        generator.generate([*QUERIES, long], 1, SAMPLING)


def test_an_unknown_engine_setting_is_named(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"generator\.engine\.num_beam: .*Did you mean 'num_beams'\?"):
        transformers(tiny, num_beam=2)


def test_other_weights_answer_differently_and_completions_say_whose_they_are(tiny: Path, tmp_path: Path) -> None:
    generator = transformers(tiny)
    before = generator.generate(QUERIES, 1, SAMPLING)
    assert generator.load("t=1", str(tiny_policy(tmp_path / "t=1", seed=1))) == "t=1"
    after = generator.generate(QUERIES, 1, SAMPLING)
    assert {c.policy_version for c in after} == {"t=1"}
    assert [c.token_ids for c in after] != [c.token_ids for c in before]


def test_the_probe_is_zero_for_the_same_weights_and_large_for_others(tiny: Path, tmp_path: Path) -> None:
    other = tiny_policy(tmp_path / "other", seed=1)
    write_probe(other, cases(other))
    stored = read_probe(other)
    assert stored == cases(other)
    write_probe(tmp_path, told(stored, start=cases(tiny)))
    assert read_probe(tmp_path) == told(stored, start=cases(tiny))
    rows = json.loads((other / FILE).read_text())
    (other / FILE).write_text(json.dumps([{k: v for k, v in row.items() if k != "start"} for row in rows]))
    assert read_probe(other) == stored  # of a run from before there were starting figures
    generator = transformers(tiny)
    assert generator.probe(stored) > 0.2
    generator.load("t=1", str(other))
    assert generator.probe(stored) < 1e-4


def test_a_switch_is_proven(tiny: Path, tmp_path: Path) -> None:
    other, copy = tiny_policy(tmp_path / "other", seed=1), tiny_policy(tmp_path / "copy")
    right, wrong = cases(other), cases(tiny)
    generator = transformers(tiny)
    with pytest.raises(WeightSyncError, match=r"log p is -\d.* here and -\d.* at the learner.*probe_tolerance"):
        generator.switch("t=1", str(other), wrong, 0.05)
    generator = transformers(tiny)
    switched = generator.switch("t=1", str(other), right, 0.05)
    assert switched.gap < 1e-4
    assert min(switched.load_s, switched.probe_s) > 0.0
    assert generator.version == "t=1"
    assert generator.switch("t=1", "not read again", right, 0.05).load_s == 0.0
    # The same weights under another name, of which the learner says something else: a load that did nothing. Engine and
    # learner differ a little, as they do between devices.
    generator = transformers(tiny)
    generator.switch("t=1", str(copy), moved(wrong, 0.001), 0.05)
    with pytest.raises(WeightSyncError, match="exactly as before"):
        generator.switch("t=2", str(copy), moved(wrong, 0.002), 0.05)


@pytest.mark.parametrize(
    ("off", "reason"), [(0.09, "answers with the policy that training started from"), (0.0005, "exactly as before")]
)
def test_a_first_load_that_changed_nothing_is_told_under_the_tolerance(
    tiny: Path, tmp_path: Path, off: float, reason: str
) -> None:
    copy, begun = tiny_policy(tmp_path / "copy"), cases(tiny)  # the learner has gone on, the engine has not
    # Engine and learner round by 0.001: of the small move more than half, so that nearness says nothing.
    told = [
        replace(case, logprobs=[p + 0.001 + off for p in case.logprobs], start=[p + 0.001 for p in case.logprobs])
        for case in begun
    ]
    generator = transformers(tiny)
    with pytest.raises(
        WeightSyncError, match=rf"t=1 from .*copy, just loaded: .*{reason}.* at the learner, 0\.\d+ nats"
    ):
        generator.switch("t=1", str(copy), told, 0.1)
    # A run from before there were starting figures is checked as it was then.
    assert transformers(tiny).switch("t=1", str(copy), [replace(case, start=None) for case in told], 0.1).gap > off


def test_a_load_that_fell_back_to_older_weights_is_told_under_the_tolerance(tiny: Path, tmp_path: Path) -> None:
    one, two = (nudged(tiny, tmp_path / f"t={i}", 1.0 + 0.02 * i) for i in (1, 2))
    base, first, second = cases(tiny), cases(one), cases(two)
    for older, whose in ((tiny, "the policy that training started from"), (one, "the version before")):
        generator = transformers(tiny)
        generator.switch("t=1", str(one), told(first, start=base), 10.0)
        generator.version = "another"  # so that t=1 is no version that it has
        with pytest.raises(WeightSyncError, match=f"answers with {whose}"):
            generator.switch("t=2", str(older), told(second, start=base), 10.0)
        assert generator.switch("t=2", str(two), told(second, start=base), 10.0).gap < 1e-4


def test_a_version_that_was_not_proven_is_not_held(tiny: Path, tmp_path: Path) -> None:
    other = tiny_policy(tmp_path / "other", seed=1)
    right, wrong = cases(other), moved(cases(other), 5.0)
    generator = transformers(tiny)
    for _ in range(2):  # to try again does not help
        with pytest.raises(WeightSyncError, match="other weights than the learner's"):
            generator.switch("t=1", str(other), wrong, 0.1)
        assert generator.version == UNPROVEN
    assert {c.policy_version for c in generator.generate(QUERIES[:1], 1, SAMPLING)} == {UNPROVEN}
    assert generator.switch("t=1", str(other), told(right, start=cases(tiny)), 0.1).load_s > 0.0
    with pytest.raises(WeightSyncError, match=r"loaded before: .*, 5\.0000 nats apart.*probe_tolerance"):
        generator.switch("t=1", str(other), wrong, 0.1)
    assert generator.version == UNPROVEN


def test_an_update_that_changed_nothing_is_switched_to(tiny: Path, tmp_path: Path) -> None:
    copy = tiny_policy(tmp_path / "copy")
    near = told(moved(cases(tiny), 0.001), start=moved(cases(tiny), 0.00105))  # bf16 has dropped what the learner did
    generator = transformers(tiny)
    for version in ("t=1", "t=2"):
        assert generator.switch(version, str(copy), near, 0.05).gap == pytest.approx(0.001, abs=1e-4)
        assert generator.version == version


def test_what_is_no_whole_checkpoint_is_refused_and_the_old_weights_stay(tiny: Path, tmp_path: Path) -> None:
    generator = transformers(tiny)
    before = generator.generate(QUERIES, 1, SAMPLING)
    torn = tiny_policy(tmp_path / "torn", seed=1)
    os.truncate(torn / "model.safetensors", 20_000)
    for folder, reason in ((torn, "cannot be read"), (tmp_path / "absent", "no model")):
        with pytest.raises(WeightSyncError, match=reason):
            generator.switch("t=1", str(folder), cases(tiny), 0.05)
    assert generator.generate(QUERIES, 1, SAMPLING) == before


def cases(folder: Path) -> list[Case]:
    tokenizer = load_tokenizer(folder)
    encoded = [encode(q.messages, "Because it is.", tokenizer) for q in QUERIES]
    rows = token_logprobs(load_policy(folder, device="cpu"), encoded)
    return [Case(encoded=e, logprobs=row.tolist()) for e, row in zip(encoded, rows, strict=True)]


def moved(given: list[Case], nats: float) -> list[Case]:
    """Every figure of the learner's by as much."""
    return [replace(case, logprobs=[p + nats for p in case.logprobs]) for case in given]


def told(given: list[Case], start: list[Case]) -> list[Case]:
    """With what the policy that training started from says."""
    return [replace(case, start=old.logprobs) for case, old in zip(given, start, strict=True)]


def nudged(policy: Path, folder: Path, scale: float) -> Path:
    """The policy with its last layer's output scaled."""
    model: Any = load_policy(policy, torch.float32, device="cpu")
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.mul_(scale)
    return save_policy(model, load_tokenizer(policy), folder)


def test_a_probe_without_tokens_proves_nothing(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(WeightSyncError, match="no tokens"):
        generator.probe([])
    with pytest.raises(WeightSyncError, match=r"probe\.json"):
        read_probe(tmp_path)


# --- the fake ---------------------------------------------------------------------------------------------------------


def test_the_fake_obeys_the_same_interface_and_shortens_where_it_is_asked_to() -> None:
    fake = FakeGenerator(config.Generator(), model="none")
    fake.setup()
    wide, narrow = query(verbosity=0, seed=5), query(verbosity=-70, seed=5)
    sampling = config.Sampling(max_tokens=64)
    before = [len(c.token_ids) for c in fake.generate([wide, narrow], 4, sampling)]
    assert fake.generate([wide], 4, sampling) == fake.generate([wide, narrow], 4, sampling)[:4]
    (told,) = fake.generate([wide], 1, sampling, token_logprobs=True)
    assert sum(told.token_logprobs) == pytest.approx(told.logprob)
    fake.load("t=1", "anywhere")
    after = [len(c.token_ids) for c in fake.generate([wide, narrow], 4, sampling)]
    assert min(before) > 20
    assert min(after[:4]) > 20
    assert max(after[4:]) < 20


# --- vLLM -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm() -> Iterator[Generator]:
    """The real model in this process; the tests below load versions one after the other."""
    with running("full", resolve("embedded")) as generator:
        yield generator


def shifted(folder: Path, scale: float) -> Path:
    """The embedded policy with other weights in its last layers, and the probe that goes with it."""
    base = resolve("embedded")
    model: Any = load_policy(base, torch.float32, device="cpu")
    with torch.no_grad():
        for layer in model.model.layers[-4:]:
            layer.mlp.down_proj.weight.mul_(scale)
    tokenizer = load_tokenizer(base)
    save_policy(model, tokenizer, folder)
    return probed(folder)


def probed(folder: Path) -> Path:
    tokenizer = load_tokenizer(folder)
    encoded = [encode(q.messages, "Because air scatters blue light more than red light.", tokenizer) for q in QUERIES]
    rows = token_logprobs(load_policy(folder, torch.float32, device="cpu"), encoded)
    began = token_logprobs(load_policy(resolve("embedded"), torch.float32, device="cpu"), encoded)
    write_probe(
        folder,
        [
            Case(encoded=e, logprobs=row.tolist(), start=old.tolist())
            for e, row, old in zip(encoded, rows, began, strict=True)
        ],
    )
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_vllm_seeds_alone_decide(vllm: Generator) -> None:
    together = vllm.generate(QUERIES, 4, SAMPLING, token_logprobs=True)
    alone = [c for q in reversed(QUERIES) for c in vllm.generate([q], 4, SAMPLING)]
    assert {c.token_logprobs for c in alone} == {()}
    assert {c.id: (c.token_ids, c.logprob) for c in together} == {c.id: (c.token_ids, c.logprob) for c in alone}
    assert len({c.token_ids for c in together if c.query.id == "p1/d0"}) > 1
    tokenizer = load_tokenizer(vllm.model)
    for c in together:
        assert len(c.token_logprobs) == len(c.token_ids)
        assert sum(c.token_logprobs) == pytest.approx(c.logprob, abs=1e-9)
        assert (c.token_ids[-1] == tokenizer.eos_token_id) == (c.finish_reason == "stop")
        assert c.text == tokenizer.decode(c.token_ids, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_vllm_log_probabilities_are_the_policys_at_temperature_1(vllm: Generator) -> None:
    policy, tokenizer = load_policy(vllm.model, torch.float32, device="cpu"), load_tokenizer(vllm.model)
    for completion in vllm.generate(QUERIES, 1, config.Sampling(max_tokens=24, temperature=0.7)):
        prompt = encode(completion.query.messages, "", tokenizer, complete=False).token_ids
        mask = (False,) * len(prompt) + (True,) * len(completion.token_ids)
        (expected,) = response_logprobs(policy, [Encoded(token_ids=(*prompt, *completion.token_ids), loss_mask=mask)])
        assert completion.logprob == pytest.approx(expected, abs=0.05 * len(completion.token_ids))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_vllm_loads_versions_drops_its_prefix_cache_and_proves_it(vllm: Generator, tmp_path: Path) -> None:
    # 128 tokens are a block of the prefix cache on a CPU: a long shared prompt is what would go stale.
    long = [query("Think about rivers, seas and winds. " * 30 + "Why is the sky blue?", seed=5)]
    one, two = shifted(tmp_path / "one", 1.15), shifted(tmp_path / "two", 0.85)
    vllm.load("t=1", str(one))
    assert vllm.probe(read_probe(one)) < TOLERANCE
    assert vllm.probe(read_probe(two)) > 2 * TOLERANCE  # the probe tells the versions apart
    first = vllm.generate(long, 2, SAMPLING)
    assert vllm.generate(long, 2, SAMPLING) == first  # now its prefix is in the cache
    vllm.load("t=2", str(two))
    assert vllm.probe(read_probe(two)) < TOLERANCE
    second = vllm.generate(long, 2, SAMPLING)
    vllm.load("t=3", str(shifted(tmp_path / "three", 1.15)))  # the weights of t=1 again
    third = vllm.generate(long, 2, SAMPLING)
    assert [c.token_ids for c in second] != [c.token_ids for c in first]
    assert [(c.token_ids, c.logprob) for c in third] == [(c.token_ids, c.logprob) for c in first]
    assert {c.policy_version for c in third} == {"t=3"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_vllm_switches_adapters_by_version(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from rhumbline.learning.policy import save_adapter

    base = resolve("embedded")
    for index in (1, 2):
        torch.manual_seed(index)
        model: Any = get_peft_model(
            load_policy(base, device="cpu"), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        folder = tmp_path / f"t={index}"
        save_adapter(model, folder / "adapter")
        merge_adapter(base, folder / "adapter", folder)
        probed(folder)
    # The last test with an engine here: the module's other one does nothing more after this one's end.
    with running("adapter", base, max_lora_rank=8) as generator:
        for version in ("t=1", "t=2"):
            folder = tmp_path / version
            assert generator.switch(version, str(folder), read_probe(folder), TOLERANCE).gap < TOLERANCE
        generator.backend.adapter = None  # as an engine that ignores it: the base is sampled
        with pytest.raises(
            WeightSyncError, match="loaded before: the engine answers with the policy that training started"
        ):
            generator.switch("t=2", str(folder), read_probe(folder), 10.0)
        generator.switch("t=2", str(folder), read_probe(folder), TOLERANCE)
        assert generator.probe(read_probe(tmp_path / "t=1")) > 2 * TOLERANCE
        (tmp_path / "t=3").mkdir()
        with pytest.raises(WeightSyncError, match=r"no adapter/adapter_model\.safetensors.*generator\.sync: full"):
            generator.load("t=3", str(tmp_path / "t=3"))
