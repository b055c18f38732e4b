"""A configuration is refused in the operator's words: file, key, value and what is allowed."""

from __future__ import annotations

import pathlib

import pytest
from support.rigs import row_text
from support.sites import DEMO, ONE_HOST

from controllers.policy import DEFAULT_POLICY
from runtime.config import (
    ActuatorConfig,
    ConfigError,
    load_host,
    load_setup,
    read_host_config,
    single_host,
)

FRACTIONS = "allow_fraction_defaults = true\n"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a site of four hosts that offer in_band and brake, and a sound configuration of one."""
    (tmp_path / "site.toml").write_text(row_text(4, budget_w=30_000.0), encoding="utf-8")
    (tmp_path / "host.toml").write_text(SOUND, encoding="utf-8")
    return tmp_path


SOUND = """
site = "site.toml"
state_dir = "state"

[[collectors]]
kind = "gpu_nvml"
host = "lab1/row-a/r01/h01"

[[actuators]]
kind = "gpu_nvml"
host = "lab1/row-a/r01/h01"
"""


def refusals(folder: pathlib.Path, text: str) -> list[str]:
    """What is said of a configuration, each line without the folder."""
    (folder / "host.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_host(read_host_config(folder / "host.toml"))
    return str(refused.value).replace(f"{folder}/", "").splitlines()


# ---- what is read ----


def test_paths_are_relative_to_the_file_that_states_them(folder: pathlib.Path) -> None:
    config = read_host_config(folder / "host.toml")
    assert (config.site, config.state_dir, config.policy) == (folder / "site.toml", folder / "state", None)
    assert config.listen == "127.0.0.1:9464"
    assert config.collectors[0].period_ms == 1_000
    assert config.actuators == (ActuatorConfig(kind="gpu_nvml", host="lab1/row-a/r01/h01", path="in_band"),)


def test_a_stated_policy_is_kept_as_text_beside_what_it_means(folder: pathlib.Path) -> None:
    (folder / "mine.toml").write_text("[t1]\nenter = 0.78\n", encoding="utf-8")
    (folder / "host.toml").write_text('policy = "mine.toml"\n' + SOUND, encoding="utf-8")
    setup = load_host(read_host_config(folder / "host.toml"))
    assert setup.policy.t1.enter == 0.78
    assert setup.policy_text == "[t1]\nenter = 0.78\n"
    assert setup.site_text == row_text(4, budget_w=30_000.0)


def test_without_a_policy_the_defaults_stand(folder: pathlib.Path) -> None:
    setup = load_host(read_host_config(folder / "host.toml"))
    assert setup.policy == DEFAULT_POLICY
    assert setup.policy_text == ""
    assert len(setup.shares) == 4


@pytest.mark.parametrize("listen", ["", "0.0.0.0:80", "[::1]:9464"])
def test_health_listens_where_it_is_told_or_nowhere(folder: pathlib.Path, listen: str) -> None:
    (folder / "host.toml").write_text(SOUND + f'[health]\nlisten = "{listen}"\n', encoding="utf-8")
    assert read_host_config(folder / "host.toml").listen == listen


def test_a_dry_run_holds_no_device(folder: pathlib.Path) -> None:
    dry = read_host_config(folder / "host.toml").dry()
    assert [actuator.kind for actuator in dry.actuators] == ["dry_run"]
    assert dry.collectors[0].kind == "gpu_nvml"


def test_a_row_is_oversubscribed_when_its_nameplate_is_above_its_budget(folder: pathlib.Path) -> None:
    assert not load_setup(folder / "site.toml", None).oversubscribed  # 4 hosts of 6.5 kW on 30 kW
    (folder / "site.toml").write_text(row_text(5, budget_w=30_000.0), encoding="utf-8")
    assert len(load_setup(folder / "site.toml", None).oversubscribed) == 5


def test_the_only_host_of_a_site_needs_no_configuration(tmp_path: pathlib.Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(FRACTIONS, encoding="utf-8")
    config = single_host(ONE_HOST, policy, tmp_path / "state")
    assert [collector.host for collector in config.collectors] == ["lab/row-a/r01/h01"]
    assert [(actuator.kind, actuator.path) for actuator in config.actuators] == [("gpu_nvml", "in_band")]
    assert load_host(config).site.name == "lab"


def test_one_of_many_hosts_has_to_be_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"has 52 hosts: say with --config which of them this machine is"):
        single_host(DEMO, None, tmp_path)


# ---- what is refused ----


def test_an_unknown_key_is_named_with_the_nearest_known_one(folder: pathlib.Path) -> None:
    assert refusals(folder, 'state_dirr = "x"\n' + SOUND) == [
        (
            'host.toml: state_dirr = "x": no such key here; did you mean state_dir? '
            "there is policy, site, state_dir, health, collectors, actuators, kafka, influx"
        )
    ]


def test_an_unknown_key_of_a_table_is_named_with_its_place(folder: pathlib.Path) -> None:
    (said,) = refusals(folder, SOUND + "perod_ms = 500\n")
    assert said == "host.toml: actuators[0].perod_ms = 500: no such key here; there is kind, host, path"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("policy = 3", 'host.toml: policy = 3: must be a text in quotes (the policy file)'),
        ("collectors = 3", ("host.toml: collectors = 3: must be written [[collectors]], once for each of the "
         "sources read here")),
        ("health = true", "host.toml: health = true: must be a table, written [health]"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_with_what_it_must_be(
    folder: pathlib.Path, line: str, said: str
) -> None:
    rest = SOUND if "collectors" not in line else 'site = "site.toml"\nstate_dir = "state"\n'
    assert refusals(folder, f"{line}\n{rest}") == [said]


def test_what_is_missing_is_named_with_what_it_is(folder: pathlib.Path) -> None:
    assert refusals(folder, "") == [
        "host.toml: site is missing: the site file",
        "host.toml: state_dir is missing: where the ledger and the hosts' state live",
    ]


def test_what_only_some_commands_need_is_asked_for_by_them(folder: pathlib.Path) -> None:
    (folder / "host.toml").write_text('site = "site.toml"\nstate_dir = "state"\n', encoding="utf-8")
    config = read_host_config(folder / "host.toml")
    said = []
    for need in (config.sources, config.bus, config.series):
        with pytest.raises(ConfigError) as refused:
            need()
        said.append(str(refused.value).removeprefix(f"{folder}/"))
    assert said == [
        "host.toml: collectors is missing: write [[collectors]], once for each of the sources read here",
        "host.toml: kafka is missing: write [kafka] with servers, the site's brokers",
        "host.toml: influx is missing: write [influx] with url, org and bucket, the site's time series",
    ]


@pytest.mark.parametrize(
    ("period", "said"),
    [
        ("50", "must be from 100 to 60000 (milliseconds)"),
        ("0", "must be above zero (milliseconds)"),
        ("1.5", "must be a whole number (milliseconds)"),
        ('"1 s"', "must be a number (milliseconds)"),
    ],
)
def test_a_period_nobody_can_keep_is_refused(folder: pathlib.Path, period: str, said: str) -> None:
    text = SOUND.replace("[[actuators]]", f"period_ms = {period}\n[[actuators]]")
    assert refusals(folder, text)[0] == f"host.toml: collectors[0].period_ms = {period}: {said}"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ("19", "must be from 20 to period_ms (milliseconds)"),
        ("1001", "must be from 20 to period_ms (milliseconds)"),
        ("0", "must be above zero (milliseconds)"),
    ],
)
def test_a_source_is_sampled_no_slower_than_it_is_heard(folder: pathlib.Path, sample: str, said: str) -> None:
    text = SOUND.replace("[[actuators]]", f"sample_ms = {sample}\n[[actuators]]")
    assert refusals(folder, text) == [f"host.toml: collectors[0].sample_ms = {sample}: {said}"]


def test_a_frame_holds_a_hundred_samples_at_most(folder: pathlib.Path) -> None:
    text = SOUND.replace("[[actuators]]", "period_ms = 60_000\nsample_ms = 100\n[[actuators]]")
    assert refusals(folder, text) == [
        "host.toml: collectors[0].sample_ms = 100: must be from 600 to period_ms (milliseconds)"
    ]


def test_a_source_is_sampled_as_often_as_it_is_heard_unless_told(folder: pathlib.Path) -> None:
    file = folder / "host.toml"
    assert read_host_config(file).collectors[0].sample_ms is None
    file.write_text(SOUND.replace("[[actuators]]", "sample_ms = 100\n[[actuators]]"), encoding="utf-8")
    assert read_host_config(file).collectors[0].sample_ms == 100


def test_an_adapter_that_does_not_exist_is_named_with_those_that_do(folder: pathlib.Path) -> None:
    assert refusals(folder, SOUND.replace('"gpu_nvml"', '"gpu_nvm"')) == [
        'host.toml: collectors[0].kind = "gpu_nvm": did you mean gpu_nvml? there is gpu_nvml',
        'host.toml: actuators[0].kind = "gpu_nvm": did you mean gpu_nvml? there is gpu_nvml, dry_run',
    ]


def test_a_host_that_the_site_does_not_have_is_named_with_the_nearest(folder: pathlib.Path) -> None:
    said = refusals(folder, SOUND.replace('host = "lab1/row-a/r01/h01"', 'host = "lab1/row-a/r01/h1"'))
    assert len(said) == 2
    assert said[0].startswith(
        'host.toml: collectors[0].host = "lab1/row-a/r01/h1": no such host in site.toml; '
        "did you mean lab1/row-a/r01/h01? there is "
    )


def test_a_path_that_the_host_does_not_offer_is_named_with_those_it_does(folder: pathlib.Path) -> None:
    assert refusals(folder, SOUND + 'path = "out_of_band"\n') == [
        (
            'host.toml: actuators[0].path = "out_of_band": the site file gives lab1/row-a/r01/h01 '
            "the paths in_band, brake"
        )
    ]
    (said,) = refusals(folder, SOUND + 'path = "inband"\n')
    assert said == (
        'host.toml: actuators[0].path = "inband": did you mean in_band? there is in_band, out_of_band, brake'
    )


def test_one_path_of_a_host_is_not_set_by_two(folder: pathlib.Path) -> None:
    twice = SOUND + '[[actuators]]\nkind = "dry_run"\nhost = "lab1/row-a/r01/h01"\n'
    assert refusals(folder, twice) == [
        "host.toml: actuators[1]: sets lab1/row-a/r01/h01 by in_band, and so does actuators[0]"
    ]


@pytest.mark.parametrize("listen", ["9464", "localhost", ":80"])
def test_an_address_without_host_or_port_is_refused(folder: pathlib.Path, listen: str) -> None:
    (said,) = refusals(folder, SOUND + f'[health]\nlisten = "{listen}"\n')
    assert said == (
        f'host.toml: health.listen = "{listen}": must be host:port, such as "127.0.0.1:9464", or "" to serve '
        "nothing"
    )


def test_text_that_is_no_toml_is_refused_with_its_line(folder: pathlib.Path) -> None:
    (said,) = refusals(folder, 'site = "site.toml\n')
    assert said.startswith("host.toml: line 1, column 18: ")
    assert said.endswith("(the file is not TOML)")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("host.toml", "the configuration cannot be read: No such file or directory"),
        ("site.toml", "the site file cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_what_it_should_be(
    folder: pathlib.Path, missing: str, said: str
) -> None:
    (folder / missing).unlink()
    with pytest.raises(ConfigError) as refused:
        load_host(read_host_config(folder / "host.toml"))
    assert str(refused.value) == f"{folder / missing}: {said}"


def test_a_file_that_is_no_text_is_refused(folder: pathlib.Path) -> None:
    (folder / "host.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="the configuration is not UTF-8 text"):
        read_host_config(folder / "host.toml")


def test_a_row_that_no_share_can_make_safe_is_refused_with_what_would_fit(folder: pathlib.Path) -> None:
    (folder / "site.toml").write_text(row_text(8, budget_w=30_000.0), encoding="utf-8")
    said = refusals(folder, SOUND)
    assert said[0].startswith(
        "site.toml: row lab1/row-a: with every GPU at its board's lowest power limit its 8 hosts "
    )
    assert all(line.startswith("site.toml: ") for line in said)


def test_a_board_without_a_clock_table_has_to_be_allowed(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"no clock table for H100-SXM5-80GB: sweep it and state"):
        load_setup(ONE_HOST, None)


def test_problems_of_the_site_and_of_the_policy_are_told_together(folder: pathlib.Path) -> None:
    (folder / "site.toml").write_text(row_text(4, budget_w=-1.0), encoding="utf-8")
    (folder / "mine.toml").write_text("[t1]\nentr = 0.78\n", encoding="utf-8")
    said = refusals(folder, 'policy = "mine.toml"\n' + SOUND)
    assert any(line.startswith("site.toml: rows[0].budget_w = -1.0: must be above zero") for line in said)
    assert any(line.startswith("mine.toml: t1.entr") and "enter" in line for line in said)
