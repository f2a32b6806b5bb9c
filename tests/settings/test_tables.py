"""The tables of the file: what may stand in them, and what is said of what may not."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from ollama_swap_proxy.config import ConfigError, Loaded, Settings, load
from ollama_swap_proxy.core.classes import NORMAL, TicketClass
from ollama_swap_proxy.settings.tables import BUILT_IN_CLASSES

RULE = '[[rules]]\nclass = "batch"\n'


def _load(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Loaded:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    return load({}, environ or {}, path)


def _settings(tmp_path: Path, text: str) -> Settings:
    return _load(tmp_path, text).settings


def _messages(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text, environ)
    return [message.replace(f"file {tmp_path / 'c.toml'}", "FILE") for message in caught.value.messages]


def test_three_classes_are_there_without_any_setting() -> None:
    assert Settings().ticket_classes() == {
        "interactive": TicketClass("interactive", 20, 60),
        "normal": NORMAL,
        "batch": TicketClass("batch", 0, 1800),
    }


def test_even_the_longest_built_in_wait_leaves_time_before_requests_are_turned_away() -> None:
    assert max(keys["max_wait_s"] for keys in BUILT_IN_CLASSES.values()) <= Settings().give_up_after_s / 2


def test_a_table_changes_a_built_in_class_key_by_key_or_adds_one(tmp_path: Path) -> None:
    text = "max_wait_s = 90\n[classes.batch]\nmax_wait_s = 300\n[classes.vip]\nrank = 30\n"
    loaded = _load(tmp_path, text)
    classes = loaded.settings.ticket_classes()
    assert classes["batch"] == TicketClass("batch", 0, 300)
    assert classes["vip"] == TicketClass("vip", 30, 90)
    assert classes["normal"] == TicketClass("normal", 10, 90)
    assert classes["interactive"] == TicketClass("interactive", 20, 60)
    assert loaded.origins["classes.vip"].startswith("file ")
    assert "classes.interactive" not in loaded.origins


def test_a_rule_takes_one_value_or_several(tmp_path: Path) -> None:
    (rule,) = _settings(
        tmp_path,
        RULE
        + 'model = ["Qwen3", "hf.co/*"]\nclient = ["10.0.0.0/8", "::1"]\npath = "/api/embed*"\nuser_agent = "a*"\n'
        + f'key_sha256 = "{"AB" * 32}"\nheader = {{X-Job = "*", X-Other = ["a", "b"]}}\n',
    ).rules
    assert rule.klass == "batch"
    assert rule.model == ("qwen3:latest", "hf.co/*")
    assert rule.client == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128"))
    assert rule.key_sha256 == ("ab" * 32,)
    assert rule.header == {"X-Job": ("*",), "X-Other": ("a", "b")}


def test_models_are_kept_by_their_canonical_names(tmp_path: Path) -> None:
    text = '[models."Library/Qwen3"]\nclass = "batch"\n[models.llama3]\n'
    models = _settings(tmp_path, text).models
    assert {name: table.klass for name, table in models.items()} == {"qwen3:latest": "batch", "llama3:latest": None}


def test_proxies_come_as_a_list_or_with_commas(tmp_path: Path) -> None:
    expected = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "::1/128")))
    assert _settings(tmp_path, 'trusted_proxies = ["10.0.0.0/8", "::1"]\n').trusted_proxies == expected
    environ = {"OLLAMA_SWAP_PROXY_TRUSTED_PROXIES": "10.0.0.0/8, ::1,"}
    assert load({}, environ).settings.trusted_proxies == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[classes.vip]\n", "[classes.vip] rank (FILE): must be given"),
        ("[classes.batch]\nrank = true\n", "[classes.batch] rank (FILE): must be a number, not true or false"),
        ("[classes.batch]\nrank = -1\n", "[classes.batch] rank (FILE): input should be greater than or equal to 0"),
        ("[classes.batch]\nmax_wait_s = inf\n", "[classes.batch] max_wait_s (FILE): input should be a finite number"),
        (
            "[classes.batch]\nmax_wait_s = 3600\n",
            "[classes.batch] max_wait_s (FILE): 3600 must be below",
        ),
        (
            "[classes.batch]\nrnk = 3\n",
            "[classes.batch] rnk (FILE): there is no such setting; nearest",
        ),
        ('[classes."a b"]\nrank = 3\n', '[classes."a b"] (FILE): a class\'s name has up to 32 lower-case letters'),
        ("[classes]\nbatch = 3\n", "[classes.batch] (FILE): must be a table"),
        ("classes = 3\n", "classes (FILE): must be tables, as in [classes.NAME]"),
        ("models = 3\n", "models (FILE): must be tables, as in [models.NAME]"),
        ("rules = 3\n", "rules (FILE): must be tables, each under its own [[rules]]"),
        ('[rules]\nclass = "batch"\n', "rules (FILE): must be tables, each under its own [[rules]]"),
        ("rules = [3]\n", "[[rules]] no. 1 (FILE): must be tables, each under its own [[rules]]"),
        ('[[rules]]\nmodel = "*"\n', "[[rules]] no. 1 class (FILE): must be given"),
        (RULE, "[[rules]] no. 1 (FILE): has no condition; the class of all that no rule names is default_class"),
        (RULE + "header = {}\n", "[[rules]] no. 1 (FILE): has no condition"),
        (RULE + 'modle = "*"\n', "[[rules]] no. 1 modle (FILE): there is no such setting; nearest valid"),
        (
            RULE + 'model = "*"\nparallel = 3\n',
            "[[rules]] no. 1 parallel (FILE): is no setting of this table",
        ),
        (RULE + "model = 3\n", "[[rules]] no. 1 model (FILE): must be a text or a list of texts; got 3"),
        (RULE + "model = [3]\n", "[[rules]] no. 1 model (FILE): must be a text; got 3"),
        (RULE + "model = []\n", "[[rules]] no. 1 model (FILE): must not be empty"),
        (RULE + 'model = ""\n', "[[rules]] no. 1 model (FILE): must not be empty"),
        (RULE + 'model = "qwen3*[ab"\n', "[[rules]] no. 1 model (FILE): has a [ without its ]; got 'qwen3*[ab'"),
        (RULE + 'model = "a b"\n', "[[rules]] no. 1 model (FILE): must be the name of a model; got 'a b': invalid"),
        (RULE + 'path = "/api/tags"\n', "[[rules]] no. 1 path (FILE): only the gated routes wait, and '/api/tags' is"),
        (RULE + 'path = "/v2/*"\n', "[[rules]] no. 1 path (FILE): only the gated routes wait, and '/v2/*' is none"),
        (RULE + 'client = "10.0.0.5/8"\n', "[[rules]] no. 1 client (FILE): must be addresses or networks, as in"),
        (RULE + 'client = "nas.lan"\n', "[[rules]] no. 1 client (FILE): must be addresses or networks, as in"),
        (RULE + "header = 3\n", '[[rules]] no. 1 header (FILE): must be a table, as in header = {X-Job = "*"}'),
        (RULE + "header = {X-Job = 3}\n", "[[rules]] no. 1 header.X-Job (FILE): must be a text or a list of texts"),
        (
            RULE + 'header = {"a b" = "*"}\n',
            "[[rules]] no. 1 header.a b (FILE): must be the name of a header",
        ),
        (RULE + 'header = {Cookie = "*"}\n', "[[rules]] no. 1 header.Cookie (FILE): Cookie carries secrets"),
        ('[[rules]]\nclass = "btch"\npath = "*"\n', "[[rules]] no. 1 class (FILE): there is no class 'btch'; nearest"),
        ('[models.a]\nclass = "btch"\n', "[models.\"a:latest\"] class (FILE): there is no class 'btch'; nearest valid"),
        ('[models."a b"]\n', "models (FILE): must be the name of a model; got 'a b': invalid model name"),
        ('[models."a:cloud"]\n', "models (FILE): must be the name of a model; got 'a:cloud': it runs at ollama.com"),
        (
            '[models.a]\n[models."A:latest"]\n',
            "models (FILE): the tables 'a' and 'A:latest' are of one model, 'a:latest'",
        ),
        (
            "[models.a]\nclas = 3\n",
            '[models."a:latest"] clas (FILE): there is no such setting; nearest valid',
        ),
        ('[proxy]\nlisten = ":1"\n', "[proxy] (FILE): there is no such table, only [classes.NAME], [[rules]] and"),
        ('[[rule]]\nclass = "batch"\n', "[rule] (FILE): there is no such table, only [classes.NAME], [[rules]] and"),
        (
            'default_class = "btch"\n',
            "default_class (FILE; in the environment OLLAMA_SWAP_PROXY_DEFAULT_CLASS): the",
        ),
        ('trusted_proxies = "a.example"\n', "trusted_proxies (FILE; in the environment OLLAMA_SWAP_PROXY_TRUSTED_PR"),
        (
            'user_header = "Authorization"\n',
            "user_header (FILE; in the environment OLLAMA_SWAP_PROXY_USER_HEADER): Authorization carries secrets, and",
        ),
        (
            'class_header = "x-forwarded-for"\n',
            "class_header (FILE; in the environment OLLAMA_SWAP_PROXY_CLASS_HEADER): x-forwarded-for is forwarded_",
        ),
        ("user_header = 3\n", "user_header (FILE; in the environment OLLAMA_SWAP_PROXY_USER_HEADER): must be a text"),
        (
            'class_header = "X Y"\n',
            "class_header (FILE; in the environment OLLAMA_SWAP_PROXY_CLASS_HEADER): must",
        ),
    ],
)
def test_what_is_wrong_in_a_table_is_told_with_its_place_and_the_reason(
    tmp_path: Path, text: str, message: str
) -> None:
    (told,) = _messages(tmp_path, text)
    assert told[: len(message)] == message


def test_the_nearest_class_is_told(tmp_path: Path) -> None:
    (told,) = _messages(tmp_path, '[classes.background]\nrank = 1\n[[rules]]\nclass = "backgrund"\npath = "*"\n')
    assert told.endswith("nearest valid name: background")


@pytest.mark.parametrize("bad", ["sk-secret", "f" * 63, "sk-" + "f" * 61, "g" * 64])
def test_a_key_in_place_of_its_hash_is_not_repeated(tmp_path: Path, bad: str) -> None:
    (told,) = _messages(tmp_path, RULE + f'key_sha256 = ["{bad}"]\n')
    assert told.startswith("[[rules]] no. 1 key_sha256 (FILE): must be the 64 hex digits of the key's SHA-256")
    assert bad not in told
    (told,) = _messages(tmp_path, RULE + f'path = "*"\nkey = "{bad}"\n')
    assert told.endswith("nearest valid name: key_sha256")
    assert bad not in told
    (told,) = _messages(tmp_path, RULE + f'header = {{Authorization = "Bearer {bad}"}}\n')
    assert bad not in told


@pytest.mark.parametrize(
    "text",
    [
        'key_sha256 = {a = "sk-secret"}',
        "key_sha256 = 12345678",
        'key_sha256 = ["x", 8765432112345678]',
        'header = {X-Token = {a = "sk-secret"}}',
        "header = {X-Token = [12345678]}",
        'header = {X-Token = "sk-secret["}',
        'header = {Cookie = {a = "sk-secret"}}',
    ],
)
def test_what_may_be_a_secret_is_not_repeated_whatever_its_type(tmp_path: Path, text: str) -> None:
    told = "\n".join(_messages(tmp_path, RULE + text))
    assert "(FILE): " in told
    assert "sk-secret" not in told
    assert "12345678" not in told


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("::ffff:10.0.0.7", "10.0.0.7/32"),
        ("::FFFF:a00:7", "10.0.0.7/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("::10.0.0.7", "::a00:7/128"),
        ("2001:db8::/104", "2001:db8::/104"),
    ],
)
def test_ipv4_written_as_ipv6_is_ipv4(tmp_path: Path, written: str, meant: str) -> None:
    settings = _settings(tmp_path, f'trusted_proxies = ["{written}"]\n{RULE}client = "{written}"\n')
    expected = (ipaddress.ip_network(meant),)
    assert settings.trusted_proxies == settings.rules[0].client == expected


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("::ffff:10.0.0.7/104", "; the network is 10.0.0.0/8"),
        ("::ffff:10.0.0.0/8", "; an IPv4 address written as IPv6 has 96 bits more: /96 to /128, not /8"),
        ("::ffff:10.0.0.0/95", "; an IPv4 address written as IPv6 has 96 bits more: /96 to /128, not /95"),
        ("10.0.0.7/255.0.0.0", "; the network is 10.0.0.0/8"),
        ("::ffff:10.0.0.0/129", "got '::ffff:10.0.0.0/129'"),
    ],
)
def test_a_network_that_cannot_be_meant_is_told_with_what_may_be(tmp_path: Path, written: str, hint: str) -> None:
    (told,) = _messages(tmp_path, f'trusted_proxies = ["{written}"]\n')
    assert told.endswith(hint)


def test_a_pinned_model_with_a_time_to_live_is_told(tmp_path: Path) -> None:
    (told,) = _messages(tmp_path, "[models.a]\npinned = true\nttl_s = 5\n")
    assert told == '[models."a:latest"] ttl_s (FILE): a pinned model stays: take out ttl_s, or pinned'
    assert _settings(tmp_path, "ttl_s = 5\n[models.a]\npinned = true\nttl_s = 0\n").ttl_s == 5


@pytest.mark.parametrize(("written", "seconds"), [("600", 600), ('"30m"', 1800), ("-1", -1), ('"-1m"', -1), ("0", 0)])
def test_a_keep_alive_is_read_as_ollama_reads_it(tmp_path: Path, written: str, seconds: float) -> None:
    settings = _settings(tmp_path, f"keep_alive = {written}\n[models.a]\nkeep_alive = {written}\n")
    assert settings.keep_alive == settings.models["a:latest"].keep_alive == seconds


def test_a_keep_alive_comes_from_the_environment_too_and_a_bad_one_is_told(tmp_path: Path) -> None:
    for written, seconds in (("600", 600), ("-1", -1), ("5m", 300)):
        assert _load(tmp_path, "", {"OLLAMA_SWAP_PROXY_KEEP_ALIVE": written}).settings.keep_alive == seconds
    for bad in ("0.5", '"soon"', '"."', "true", "[]"):
        (told,) = _messages(tmp_path, f"keep_alive = {bad}\n")
        assert "keep_alive (FILE" in told


def test_a_home_model_with_a_time_to_live_is_told(tmp_path: Path) -> None:
    (told,) = _messages(tmp_path, 'home = "A"\n[models.a]\nttl_s = 5\n')
    assert told == '[models."a:latest"] ttl_s (FILE): the home model stays: take out ttl_s, or home'
    (told,) = _messages(tmp_path, 'home = "a b"\n')
    assert "must be the name of a model" in told
    assert _settings(tmp_path, 'home = ""\n').home == ""


def test_preloading_what_is_pinned_where_nothing_is_pinned_is_told(tmp_path: Path) -> None:
    (told,) = _messages(tmp_path, "preload_pinned = true\n[models.a]\n")
    assert "no model is pinned; write pinned = true" in told
    pinned = "preload_pinned = true\n[models.a]\npinned = true\n[models.b]\n"
    assert _settings(tmp_path, pinned).policy().preloads == ("a:latest",)
    assert _settings(tmp_path, pinned.partition("\n")[2]).policy().preloads == ()


def test_everything_wrong_in_all_tables_is_told_at_once(tmp_path: Path) -> None:
    text = "parallel = -1\n[classes.vip]\n[[rules]]\n[[rules]]\nclass = 3\npath = 4\n[models.a]\nb = 1\n"
    assert len(_messages(tmp_path, text)) == 6


@pytest.mark.parametrize("key", ["CLASSES", "RULES", "MODELS"])
def test_a_table_in_the_environment_is_told_to_belong_into_a_file(tmp_path: Path, key: str) -> None:
    (told,) = _messages(tmp_path, "", {f"OLLAMA_SWAP_PROXY_{key}": "x"})
    assert told.startswith(f"OLLAMA_SWAP_PROXY_{key} (environment): {key.lower()} are tables, which only a file can")


def test_the_default_class_can_be_one_of_the_file_and_comes_from_the_environment(tmp_path: Path) -> None:
    environ = {"OLLAMA_SWAP_PROXY_DEFAULT_CLASS": "vip"}
    assert _load(tmp_path, "[classes.vip]\nrank = 3\n", environ).settings.default_class == "vip"
    (told,) = _messages(tmp_path, "", environ)
    assert told.startswith("default_class (environment OLLAMA_SWAP_PROXY_DEFAULT_CLASS): there is no class 'vip'")
