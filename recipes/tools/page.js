"use strict";
const all = JSON.parse(document.getElementById("data").textContent);
const form = document.querySelector("form"), list = document.getElementById("list");
const more = document.getElementById("more"), PAGE = 20;
let found = [], shown = 0;

function element(name, text, className) {  // text of models goes in as text only
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function options(name, values) {
  const select = form.elements[name];
  for (const [value, label] of [["", "all"], ...values]) {
    const option = element("option", label);
    option.value = value;
    select.append(option);
  }
}

function card(one) {
  const made = element("article", undefined, "one"), head = element("div");
  const said = one.right === null ? [] : [one.right ? element("b", "right", "green") : element("b", "wrong", "red")];
  const parts = [one.stage, one.step === undefined ? "held out" : "step " + one.step, one.language];
  head.append(...parts.map(part => element("span", part)), ...said);
  const scores = Object.entries(one.scores).map(([name, value]) => name + " " + value);
  if (one.reward !== undefined) scores.push("reward " + one.reward);
  if (one.advantage != null) scores.push("advantage " + (one.advantage > 0 ? "+" : "") + one.advantage.toFixed(3));
  head.append(...scores.map(score => element("span", score)));
  made.append(head, element("p", one.question));
  if (one.reasoning) {
    const fold = element("details");
    fold.open = one.reasoning.length < 300;
    fold.append(element("summary", "reasoning, " + one.reasoning.length.toLocaleString("en") + " characters"),
                element("code", one.reasoning.trim()));
    made.append(fold);
  }
  made.append(element("code", one.text.trim() || "(nothing after it)"));
  return made;
}

function showMore() {
  list.append(...found.slice(shown, shown + PAGE).map(card));
  shown = Math.min(shown + PAGE, found.length);
  more.hidden = shown >= found.length;
}

function apply() {
  const want = Object.fromEntries(new FormData(form));
  const within = (value, from, to) => (from === "" && to === "") ||
    (value !== undefined && (from === "" || value >= Number(from)) && (to === "" || value <= Number(to)));
  found = all.filter(one =>
    (!want.stage || one.stage === want.stage) && (!want.language || one.language === want.language) &&
    (!want.right || String(one.right) === want.right) && within(one.step, want.first, want.last) &&
    within(one.reward, want.least, want.most) &&
    (!want.words || (one.question + one.reasoning + one.text).toLowerCase().includes(want.words.toLowerCase())));
  document.getElementById("count").textContent =
    found.length.toLocaleString("en") + " of " + all.length.toLocaleString("en") + " completions";
  list.replaceChildren();
  shown = 0;
  showMore();
}

function fromLink() {  // #completions?stage=r1_zero&right=false
  const [place, asked] = location.hash.slice(1).split("?");
  if (place !== "completions") return;
  if (asked !== undefined) {
    form.reset();
    for (const [name, value] of new URLSearchParams(asked)) if (form.elements[name]) form.elements[name].value = value;
    apply();
  }
  document.getElementById("completions").scrollIntoView();
}

const unique = name => [...new Set(all.map(one => one[name]))].map(value => [value, value]);
options("stage", unique("stage"));
options("language", unique("language").sort());
options("right", [["true", "right"], ["false", "wrong"], ["null", "not graded"]]);
form.addEventListener("input", apply);
form.addEventListener("reset", () => setTimeout(apply));
form.addEventListener("submit", event => event.preventDefault());
more.addEventListener("click", showMore);
addEventListener("hashchange", fromLink);
apply();
fromLink();
