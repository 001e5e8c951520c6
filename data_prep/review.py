"""The page on which people review the cold-start data (paper v2, B.3.2): `python -m data_prep.review FILE`.

FILE is the review.jsonl or review.csv of data_prep.cold_start. Every decision is appended to another file and written
to disk before the page shows the next row, so a kill of the page loses no decision. Set `review` in the job's YAML
to that file and run the job again; the last decision on each row counts.

A row is decided once, then checked by another reviewer, who sees the first one's decision and text. Keys: a accept,
e edit, r reject (with a reason), n next.
"""

import fcntl
import getpass
import json
import logging
import os
import re
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import rewards
from data_prep import cold_start, rows, runs
from data_prep.filters import FILTERS, Candidate, is_right
from data_prep.runs import commands
from rewards.completion import INVISIBLE

log = logging.getLogger(__name__)
WAITING = ("first check", "second check", "all")
# Delimiters of formulas for the browser. They are from the private use area, so that no text contains them by chance.
INLINE, DISPLAY = ("\ue000", "\ue001"), ("\ue002", "\ue003")
FORMULA = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)|(?<![\\$\w])\$(?!\s)([^$\n]{1,2000}?)(?<![\s\\])\$(?![\w$])",
    re.S,
)
UNSEEN = re.compile(f"[{INVISIBLE}\ue000-\ue003\x00-\x08\x0b-\x1f]")
# `literal` escapes completions, so that nothing in them is executed. This policy keeps the page from loading anything.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
KEYS = """<script>
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input:not([type=radio]), textarea");
  const id = event.key === "Escape" ? "cancel" : !typing && {a: "accept", e: "edit", r: "reject", n: "next"}[event.key];
  const button = id && document.getElementById(id);
  if (button) { event.preventDefault(); button.click(); }
});
</script>"""
FOCUS = """() => { (function focus(tries) {
  const box = document.querySelector("#%s textarea, #%s input");
  if (box?.offsetParent) box.focus(); else if (tries) setTimeout(focus, 50, tries - 1);
})(100); }"""
NAMED = "name => { history.replaceState(null, '', '?reviewer=' + encodeURIComponent(name)); }"
CSS = """
.bar { height: 0.5rem; border-radius: 4px; background: var(--border-color-primary); margin-bottom: 0.3rem; }
.bar div { height: 100%; border-radius: 4px; background: var(--color-accent); }
.block.passage { border: 1px solid var(--border-color-primary); border-radius: 8px; contain: paint;
  padding: 0.5rem 0.9rem !important; }
.passage .md { overflow-x: auto; overflow-wrap: anywhere; }
.gradio-container { overflow: clip !important; } /* hidden, as it is, nothing in it can stick */
.buttons { position: sticky; bottom: 0; background: var(--body-background-fill); padding: 0.5rem 0; z-index: 50;
  gap: 0.5rem; }
.buttons button { min-width: 5rem; padding: 0.5rem 0.3rem; font-size: 0.9rem; }
footer { display: none !important; }
"""


class Review:
    """The rows of a review file and all decisions on them. Only one page at a time can open the decisions file.

    Raises runs.MissingRunError if the review file is not from a finished cold start, ValueError for errors in either
    file, and runs.ConfigError if another page has the decisions file open.
    """

    def __init__(self, file: Path, decisions: Path):
        record = runs.read(file.parent)
        if not file.is_file():
            raise ValueError(f"{file}: no such file; data_prep.cold_start writes review.jsonl into its output_dir")
        settings = runs.settings(cold_start.ColdStart, record["config"], str(file.parent / "run.json"))
        asked = [row for row in rows.load_rows(settings.prompts) if row["kind"] == "reasoning"]
        self.rows = {row["id"]: row for row in asked}
        self.thresholds = settings.rewritten
        self.records = {record["id"]: record for record in cold_start.read_review(file, asked)}
        if not self.records:
            raise ValueError(f"{file}: no rows to review")
        self.history: dict[str, list[dict[str, str]]] = {id: [] for id in self.records}
        self.lock = threading.Lock()
        decisions.parent.mkdir(parents=True, exist_ok=True)
        self.file = decisions.open("ab")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise runs.ConfigError(f"{decisions} is open in another review page; use that one, or close it") from None
        whole = decisions.read_bytes().rpartition(b"\n")
        self.file.truncate(len(whole[0] + whole[1]))  # drop a cut-off line, which was never reported as saved
        for record in cold_start.read_decisions(decisions, asked):
            self.history.setdefault(record["id"], []).append(record)
        for id, record in self.records.items():
            if record["decision"] and not self.history[id]:
                self._append(record | {"reviewer": file.name, "reason": ""})

    def now(self, id: str) -> dict[str, str]:
        """The current row, which has the text of its last decision, if there is one."""
        return self.history[id][-1] if self.history[id] else self.records[id]

    def waiting(self, reviewer: str, which: str) -> list[str]:
        """The ids that this reviewer may decide: those without a decision, those with one other reviewer's, or all."""
        if which == "all":
            return list(self.records)
        by = {id: {decision["reviewer"] for decision in self.history[id]} for id in self.records}
        return [
            id for id, who in by.items() if (len(who) == 1 and reviewer not in who if which == WAITING[1] else not who)
        ]

    def progress(self) -> dict[str, int]:
        last = [{d["reviewer"]: d["decision"] for d in self.history[id]} for id in self.records]
        return {
            "rows": len(last),
            "decided": sum(map(bool, last)),
            "twice": sum(len(one) > 1 for one in last),
            "disagreed": sum(len(set(one.values())) > 1 for one in last),
        }

    def findings(self, id: str) -> list[str]:
        """The results of the rewards and the job's filters on the current text, and the job's own findings."""
        record, row = self.now(id), self.rows[id.rpartition("-")[0]]
        text = cold_start.written(record)
        verdict = {True: "right", False: "wrong", None: "not for rules to judge"}[is_right(row, text)]
        asked = f"Answer {row['answer']}" if row["answer"] else "Tests" if row.get("tests") else "Answer"
        share = rewards.language_consistency(record["reasoning"], row["language"])
        found = [f"{asked}: {verdict}", f"Language: {share:.2f} of the reasoning is {row['language']}"]
        checks = [check for check in FILTERS if check.__name__ in self.thresholds.steps]
        failed = [(check.__name__, check(Candidate(row, text), self.thresholds)) for check in checks]
        found += [f"Fails {name}: {why}" for name, why in failed if why] or [f"Passes all {len(checks)} filters"]
        return found + ([f"From the job: {record['findings']}"] if record["findings"] else [])

    def decide(self, id: str, reviewer: str, decision: str, reason: str = "", **edited: str) -> None:
        """Append a decision and return once it is on disk. Raises ValueError for an invalid decision (without a name, a
        rejection without a reason, a text that cannot be trained on), and OSError if it cannot be saved."""
        record = self.now(id) | {name: text.replace("\r\n", "\n").strip() for name, text in edited.items()}
        record |= {"decision": decision, "reviewer": reviewer.strip(), "reason": reason.strip()}
        if not record["reviewer"]:
            raise ValueError("Write your name above. It is recorded with each decision.")
        if decision == "reject" and not record["reason"]:
            raise ValueError("Write the reason for the rejection.")
        if fault := cold_start.review_fault(record, self.rows):
            raise ValueError(f"Not saved: {fault}.")
        if record != self.now(id):  # equal if a button was clicked twice
            self._append(record)

    def _append(self, record: dict[str, str]) -> None:
        record = record | {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        with self.lock:
            before = os.fstat(self.file.fileno()).st_size
            try:
                self.file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
                self.file.flush()
                os.fsync(self.file.fileno())
            except OSError:
                self.file.truncate(before)
                raise
            self.history[record["id"]].append(record)


def literal(text: str) -> str:
    """Markdown that shows a text literally, except for its formulas. Nothing in the text acts as markup, and invisible
    characters are shown by name."""
    text = UNSEEN.sub(lambda sign: f"[U+{ord(sign.group()):04X}]", text)
    shown, at = [], 0
    for formula in FORMULA.finditer(text):
        left, right = DISPLAY if formula[1] or formula[2] else INLINE
        shown += [_plain(text[at : formula.start()]), left, next(filter(None, formula.groups())), right]
        at = formula.end()
    return "".join([*shown, _plain(text[at:])])


def _plain(text: str) -> str:
    escaped = re.sub(r"[!-/:-@\[-`{-~]", r"\\\g<0>", text)
    return re.sub(r"(?<=\n)[ \t]+", lambda spaces: "&nbsp;" * len(spaces.group().expandtabs()), escaped)


class ContentSecurityPolicy:
    """ASGI middleware that adds the content security policy to every response."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def page(review: Review, name: str):
    """The Gradio page. `name` is the reviewer's name unless one is typed or given in the address as ?reviewer=."""
    import gradio as gr  # slow to import, and only needed here

    with gr.Blocks(title="Cold-start review", analytics_enabled=False) as blocks:
        with gr.Row():
            gr.Markdown("# Cold-start review")
            reviewer = gr.Textbox(name, label="Reviewer", elem_id="reviewer", max_lines=1)
            which = gr.Radio(WAITING, value=WAITING[0], label="Rows", elem_id="which")
        finished = gr.HTML(elem_id="finished")
        id = gr.Textbox(visible="hidden", elem_id="id")  # sent with each click: two quick clicks decide only one row
        title = gr.Markdown(elem_id="title")
        texts = {}
        for part in ("question", "reasoning", "summary"):
            gr.Markdown(f"### {'Problem' if part == 'question' else part.capitalize()}")
            texts[part] = gr.Markdown(
                elem_id=part,
                elem_classes="passage",
                line_breaks=True,
                latex_delimiters=[
                    {"left": left, "right": right, "display": display}
                    for (left, right), display in ((INLINE, False), (DISPLAY, True))
                ],
            )
        gr.Markdown("### Checks")
        findings = gr.Markdown(elem_id="findings")
        with gr.Group(visible=False) as editing:
            reasoning = gr.Textbox(label="Reasoning", lines=6, max_lines=30, elem_id="edit-reasoning")
            summary = gr.Textbox(label="Summary", lines=3, max_lines=20, elem_id="edit-summary")
        with gr.Group(visible=False) as rejecting:
            reason = gr.Textbox(label="Why is it rejected?", max_lines=1, elem_id="reason")
        said = gr.Markdown(elem_id="said")
        with gr.Row(elem_classes="buttons") as deciding:  # hidden during edits, which a click would lose
            back = gr.Button("Back", elem_id="back")
            accept = gr.Button("Accept (a)", variant="primary", elem_id="accept")
            edit = gr.Button("Edit (e)", elem_id="edit")
            reject = gr.Button("Reject (r)", variant="stop", elem_id="reject")
            following = gr.Button("Next (n)", elem_id="next")
        with gr.Row(elem_classes="buttons", visible=False) as leaving:
            save = gr.Button("Save and accept (Shift+Enter)", variant="primary", elem_id="save", visible=False)
            confirm = gr.Button("Reject (Enter)", variant="stop", elem_id="confirm", visible=False)
            cancel = gr.Button("Cancel (Esc)", elem_id="cancel")

        modes = (deciding, editing, rejecting, leaving, save, confirm)

        def show(at: str, note: str = "") -> dict:
            done = review.progress()
            counts = "{decided} of {rows} decided, {twice} checked by a second reviewer, {disagreed} disagreed".format(
                **done
            )
            share = done["decided"] / done["rows"]
            update = {
                id: at,
                finished: f'<div class="bar"><div style="width: {share:.1%}"></div></div>{counts}',
                said: literal(note),
                reason: "",
                **{one: gr.update(visible=one is deciding) for one in modes},
            }
            if not at:
                end = f"Nothing is left here. `review: {review.file.name}` in the job's YAML takes the decisions in."
                empty = dict.fromkeys([findings, *texts.values(), reasoning, summary], "")
                return update | empty | {title: literal(end)}
            record = review.now(at)
            number = list(review.records).index(at) + 1
            lines = [f"- {literal(line)}" for line in review.findings(at)]
            for decision in review.history[at]:
                line = f"{decision['decision']} by {decision['reviewer']}" + (
                    f": {decision['reason']}" if decision["reason"] else ""
                )
                lines.append(f"- **{literal(line)}**")
            if (record["reasoning"], record["summary"]) != tuple(
                review.records[at][k] for k in ("reasoning", "summary")
            ):
                lines.append("- **The text was edited.**")
            return update | {
                title: f"Row {number} of {done['rows']}: {literal(at)}",
                findings: "\n".join(lines),
                reasoning: record["reasoning"],
                summary: record["summary"],
                **{texts[part]: literal(record[part]) for part in texts},
            }

        def go_on(at: str, name: str, kind: str) -> dict:
            places = list(review.records)
            here = places.index(at) if at else -1
            left = review.waiting(name.strip(), kind)
            after = [one for one in left if places.index(one) > here]
            return show(next(iter(after or [one for one in left if one != at]), ""))

        def go_back(at: str) -> dict:
            places = list(review.records)
            return show(places[max(places.index(at) - 1, 0)] if at else places[-1])

        def decide(at: str, name: str, kind: str, decision: str, **more: str) -> dict:
            if not at:
                return show("")
            try:
                review.decide(at, name, decision, **more)
            except (ValueError, OSError) as error:
                return {said: literal(str(error))}
            return go_on(at, name, kind)

        def load(request: gr.Request) -> dict:
            name_now = request.query_params.get("reviewer") or name
            kind = next((one for one in WAITING[:2] if review.waiting(name_now, one)), WAITING[0])
            return go_on("", name_now, kind) | {reviewer: name_now, which: kind}

        shown = [
            id,
            finished,
            title,
            findings,
            *texts.values(),
            reasoning,
            summary,
            reason,
            said,
            *modes,
        ]
        who = [id, reviewer, which]
        blocks.load(load, None, [*shown, reviewer, which])
        reviewer.change(None, reviewer, None, js=NAMED)
        which.input(lambda name, kind: go_on("", name, kind), [reviewer, which], shown)
        following.click(go_on, who, shown)
        back.click(go_back, id, shown)
        accept.click(lambda *at: decide(*at, "accept"), who, shown)
        for event in (save.click, reasoning.submit, summary.submit):
            event(
                lambda *at: decide(*at[:3], "accept", reasoning=at[3], summary=at[4]), [*who, reasoning, summary], shown
            )
        for event in (confirm.click, reason.submit):
            event(lambda *at: decide(*at[:3], "reject", reason=at[3]), [*who, reason], shown)
        for button, group, end, box in (
            (edit, editing, save, "edit-reasoning"),
            (reject, rejecting, confirm, "reason"),
        ):
            opened = {one: gr.update(visible=one in (group, leaving, end)) for one in modes}
            button.click(lambda opened=opened: opened, None, list(opened)).then(None, js=FOCUS % (box, box))
        cancel.click(show, id, shown)
    return blocks


def main(argv: list[str]) -> None:
    parser = commands.parser("data_prep.review", __doc__)
    offered = Path("outputs/cpu/cold_start/review.jsonl")
    parser.add_argument("file", type=Path, metavar="FILE", nargs="?", default=offered, help="default: %(default)s")
    parser.add_argument(
        "--decisions", type=Path, help="where they are kept (default: reviews/<scale>/cold_start.jsonl)"
    )
    parser.add_argument("--reviewer", default=getpass.getuser(), help="the name on the page (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    folder = arguments.file.parent
    decisions = arguments.decisions or Path("reviews", folder.parent.name, f"{folder.name}.jsonl")
    try:
        review = Review(arguments.file, decisions)
    except ValueError as error:
        raise runs.ConfigError(str(error)) from error
    _, address, _ = page(review, arguments.reviewer).launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        enable_monitoring=False,
        app_kwargs={"middleware": [(ContentSecurityPolicy, (), {})]},
        head=KEYS,
        css=CSS,
    )
    log.info("%d rows to review: %s?reviewer=%s", len(review.records), address, quote(arguments.reviewer))
    log.info("decisions: %s; `review: %s` in the job's YAML takes them in", decisions, decisions)
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(commands.run(main))
