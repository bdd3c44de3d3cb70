"""The dashboard and the alerts speak of figures that a running server has, and every alert says what to do."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from api.metrics import Metrics
from load.vendor_simulator import Behaviour, VendorSimulator
from tests.e2e import flows
from tests.e2e.conftest import needs
from tests.e2e.server_process import ServerProcess
from tests.e2e.vendors import asking, listening, reranked, until

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/millrace.json"
PAGE = ROOT / "docs/operations/monitoring.md"

# what Prometheus itself adds
OWN_METRICS = {"up"}
OWN_LABELS = {"instance", "job"}
# what `millrace serve --workers` adds
OWN_LABELS_OF_WORKERS = {"worker"}
# whose values are no words of ours
OTHERS_WORDS = OWN_LABELS | {"status"}

WORDS = {"sum", "max", "min", "avg", "count", "topk", "by", "without", "on", "ignoring", "and", "or", "unless", "bool", "offset"}
FUNCTIONS = {"rate", "increase", "max_over_time", "histogram_quantile", "vector", "label_values"}
TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<name>[A-Za-z_:][\w:]*)|(?P<range>\[[^\]]*\])|(?P<other>=~|!~|!=|==|>=|<=|[\d.]+|.))'
)
Use = tuple[str, str, str]
Known = dict[str, dict[str, set[str]]]


def tokens(expression: str) -> list[tuple[str, str]]:
    """Kind and text of each token of a PromQL expression."""
    found = []
    for match in TOKEN.finditer(expression.strip()):
        assert match.lastgroup is not None
        found.append((match.lastgroup, match[match.lastgroup]))
    return found


def uses(expression: str) -> tuple[set[str], set[Use], set[str]]:
    """Metrics, what selectors ask of them, and labels that results are grouped by.

    A selector asks for a metric, a label, and a regular expression of its values; of `"a|b"` for each alternative apart.
    """
    metrics: set[str] = set()
    asked: set[Use] = set()
    grouped: set[str] = set()
    metric, within = "", ""
    for place, (kind, text) in enumerate(read := tokens(expression)):
        following = read[place + 1][1] if place + 1 < len(read) else ""
        if text == "{":
            within = "selector"
        elif text == "(" and place and read[place - 1][1] in ("by", "without", "on", "ignoring"):
            within = "grouping"
        elif text in ("}", ")"):
            within = ""
        elif kind == "name" and within == "selector":
            value = json.loads(read[place + 2][1])
            words = value.split("|") if following in ("=~", "!~") else [re.escape(value)]
            asked |= {(metric, text, word) for word in words}
        elif kind == "name" and within == "grouping":
            grouped.add(text)
        elif kind == "name" and text not in WORDS:
            if following == "(":
                assert text in FUNCTIONS, f"the function {text} is not known to this test"
                continue
            metric = text
            metrics.add(text)
    return metrics, asked, grouped


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    variables = [entry["definition"] for entry in dashboard["templating"]["list"] if entry["type"] == "query"]
    return [expression.replace("$__rate_interval", "5m").replace("$instance", ".+") for expression in expressions + variables]


MODEL = '[[models]]\nname = "{name}"\nprovider = "Jina"\nkind = "rerank"\nbase_url = "{url}"\n'
EXPRESSIONS = [*(rule["expr"] for rule in alerts()), *dashboard_expressions()]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Sample name -> label -> values, of a server to which everything happened that the dashboard and the alerts ask for by name."""
    folder = tmp_path_factory.mktemp("server")
    with listening(VendorSimulator(Behaviour(reply=reranked))) as vendor:
        config = folder / "millrace.toml"
        config.write_text(MODEL.format(name="gone", url="http://127.0.0.1:9/v1") + MODEL.format(name="here", url=vendor.base_url))
        server = ServerProcess(folder / "data", log_file=folder / "server.log", environ={"MILLRACE_CONFIG": str(config)})
        try:
            text = figures_of_a_life(server.wait_until_ready(), vendor)
        finally:
            server.kill()
    found: Known = {}
    for family in text_string_to_metric_families(text):
        for name in names_of(family.name, family.type):
            found[name] = {label: set() for label in declared().get(family.name, set()) | ({"le"} if name.endswith("_bucket") else set())}
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    return found


def figures_of_a_life(server: ServerProcess, vendor: VendorSimulator) -> str:
    """The figures of a server that ingested, and failed to; searched, degraded, and for a client that hung up; and answered a chat."""
    question = "When does water boil?"
    dataset = flows.create_dataset(server, "facts")
    flows.ingest(server, dataset, {"water.txt": b"Water boils at 100 degrees."})
    damaged = flows.upload(server, dataset, {"damaged.pdf": b"This is no PDF."})
    flows.start_parsing(server, dataset, damaged)
    until(lambda: flows.documents(server, dataset)[damaged[0]]["run"] == "FAIL", "the damaged document has not failed")
    assert flows.retrieve(server, [dataset], question, rerank_id="gone@Jina")["degraded"] == ["rerank"]
    vendor.behaviour = Behaviour("hang")
    with asking(server, "/retrieval", {"question": question, "dataset_ids": [dataset], "rerank_id": "here@Jina"}):
        until(lambda: vendor.open_requests == 1, "the reranker was not asked")
    until(lambda: 'outcome="cancelled"' in figures(server), "the client that hung up is not noticed")
    chat = flows.create_chat(server, "facts", [dataset])
    flows.ok(server.call("POST", f"/chats/{chat}/completions", {"question": question, "stream": False}))
    assert server.get("/healthz")[0] == 200
    return figures(server)


def figures(server: ServerProcess) -> str:
    return server.get("/metrics")[1].decode()


def names_of(family: str, kind: str) -> list[str]:
    match kind:
        case "counter":
            return [f"{family}_total"]
        case "histogram":
            return [f"{family}_{part}" for part in ("bucket", "sum", "count")]
    return [family]


def declared() -> dict[str, set[str]]:
    """Family -> labels, also of what has no series yet."""
    return {
        metric._name: set(metric._labelnames) for metric in set(Metrics().registry._collector_to_names) if hasattr(metric, "_labelnames")
    }


# ---------------------------------------------------------------------------------------------------- what they speak of
def test_the_tokenizer_of_this_test_reads_promql() -> None:
    expression = 'sum by (a, le) (rate(x_bucket{b=~"by (c)|/d", d!="e.f"}[5m])) / on () max(y) > 0.5 or vector(0)'
    asked = {("x_bucket", "b", "by (c)"), ("x_bucket", "b", "/d"), ("x_bucket", "d", r"e\.f")}
    assert uses(expression) == ({"x_bucket", "y"}, asked, {"a", "le"})


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_label_and_value_exists_in_a_running_server(known: Known, expression: str) -> None:
    if expression.startswith("label_values("):
        expression = expression.removeprefix("label_values(").partition(",")[0]
    metrics, asked, grouped = uses(expression)
    assert metrics - OWN_METRICS <= known.keys()
    for metric, label, word in asked:
        labels = known.get(metric, {})
        assert label in labels.keys() | OWN_LABELS, f"{metric} has no label {label}"
        found = label in OTHERS_WORDS or any(re.fullmatch(word, value) for value in labels[label])
        assert found, f"{label} of {metric} is never {word}, but {sorted(labels[label])}"
    assert grouped <= OWN_LABELS.union(*(known.get(metric, {}) for metric in metrics))


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_the_labels_in_an_alert_s_summary_are_those_of_its_result(rule: dict[str, Any], known: Known) -> None:
    metrics, _, grouped = uses(rule["expr"])
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    kept = grouped if re.search(r"\b(sum|max)\b", rule["expr"]) else OWN_LABELS.union(*(known.get(metric, {}) for metric in metrics))
    assert shown <= kept


def test_the_labels_in_the_dashboard_s_legends_are_those_of_their_results(known: Known) -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            metrics, _, grouped = uses(target["expr"].replace("$__rate_interval", "5m"))
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            every = OWN_LABELS.union(OWN_LABELS_OF_WORKERS, *(known.get(metric, {}) for metric in metrics))
            assert shown <= (grouped if re.search(r"\b(sum|max)\b", target["expr"]) else every), panel["title"]


# ---------------------------------------------------------------------------------------------------- what to do
@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["runbook"] == f"docs/operations/monitoring.md#{rule['alert'].lower()}"
    section = PAGE.read_text().partition(f"\n### {rule['alert']}\n")[2].partition("\n### ")[0]
    assert len(section.split()) > 20


def test_no_section_is_about_an_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE)) == {rule["alert"] for rule in alerts()}


def test_the_page_tells_of_every_figure() -> None:
    page = PAGE.read_text()
    assert [name for name in declared() if name not in page] == []


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [(x, y) for panel in panels for grid in [panel["gridPos"]]
             for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])]  # fmt: skip
    assert len(set(taken)) == len(taken)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        needs("promtool (Debian: prometheus)")
    return subprocess.run([str(program), *arguments], cwd=ALERTS.parent, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml")])
def test_prometheus_takes_the_files(arguments: tuple[str, ...]) -> None:
    ran = promtool(*arguments)
    assert ran.returncode == 0, ran.stderr


def has_fired(alert: str, series: dict[str, str], minutes: int, folder: Path) -> bool:
    """Whether the alert has fired within so many minutes of these series, a sample a minute, as Prometheus itself reckons."""
    expression = f'count(count_over_time(ALERTS{{alertname="{alert}", alertstate="firing"}}[{minutes}m])) > bool 0 or vector(0)'
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": f"{minutes}m", "exp_samples": [{"labels": "{}", "value": 1}]}],
    }
    (folder / "cases.yml").write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [case]}), "utf-8")
    ran = promtool("test", "rules", str(folder / "cases.yml"))
    assert ran.returncode == 0 or "got:" in ran.stdout + ran.stderr, ran.stdout + ran.stderr
    return ran.returncode == 0


@pytest.mark.parametrize(("leased", "stands"), [(0, True), (3, False)])
def test_ingestion_by_processes_that_show_no_figures_does_not_count_as_standing(leased: int, stands: bool, tmp_path: Path) -> None:
    series = {
        'millrace_ingest_backlog{state="waiting"}': "5x80",
        'millrace_ingest_backlog{state="leased"}': f"{leased}x80",
    }
    assert has_fired("MillraceIngestionStands", series, 70, tmp_path) == stands


@pytest.mark.parametrize(
    ("open_at", "fails"),
    [
        pytest.param("1x10", True, id="open"),
        pytest.param("1 0 1 0 1 0 1 0 1 0 1", True, id="half open whenever it is asked"),
        pytest.param("0 0 0 0 0 1 0 0 0 0 0", False, id="open for a moment"),
    ],
)
def test_what_fails_whenever_it_is_asked_sets_the_alert_off_and_a_moment_does_not(open_at: str, fails: bool, tmp_path: Path) -> None:
    series = {'millrace_breaker_state{provider="redis", kind="cache", state="open"}': open_at}
    assert has_fired("MillraceBreakerOpen", series, 10, tmp_path) == fails
