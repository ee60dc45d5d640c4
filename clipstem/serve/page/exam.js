// The exam page: asks the API of the server that it comes from, keeps no answer before it is given.
"use strict";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const names = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
let units = [];
let sitting = null; // the exam that is being taken
let shown = null; // the question on the page, null while none waits for an answer

async function ask(path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, {
    method: body ? "POST" : "GET",
    headers,
    body: body && JSON.stringify(body),
  });
  const said = await answer.json();
  if (!answer.ok) {
    throw Object.assign(new Error(said.error ?? answer.statusText), { status: answer.status });
  }
  return said;
}

async function trying(work) {
  $("problem").hidden = true;
  try {
    await work();
  } catch (error) {
    $("problem").textContent = `${error.message}.`;
    $("problem").hidden = false;
    if (error.status === 404 && sitting) { // the server has been started anew, or has forgotten it
      sitting = null;
      show("choose");
    }
  }
}

function show(id) {
  for (const part of ["choose", "exam", "end"]) $(part).hidden = part !== id;
}

const spoken = (name) => name.replaceAll("-", " ") || "(no name)";
const nameOf = (place) => names[place] ?? String(place + 1);

function fill(select, values, text = spoken) {
  const before = select.value;
  select.replaceChildren(...values.map((value) => new Option(text(value), value)));
  if (values.includes(before)) select.value = before;
}

function offer() {
  const of = (name, among) => [...new Set(among.map((unit) => unit[name]))];
  fill($("subject"), of("subject", units));
  const here = units.filter((unit) => unit.subject === $("subject").value);
  fill($("grade"), of("grade", here));
  fill($("skill"), of("skill", here.filter((unit) => unit.grade === $("grade").value)));
}

function showScores(score, modelScore) {
  for (const [id, value] of [["score", score], ["model-score", modelScore]]) {
    $(id).textContent = value;
    $(`${id}-bar`).value = value;
  }
}

async function begin() {
  const unit = Object.fromEntries(
    ["subject", "grade", "skill"].map((name) => [name, $(name).value]),
  );
  sitting = await ask("/v1/exam", unit);
  showScores(0, 0);
  await next();
}

function optionItem(option, place) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  const key = document.createElement("kbd");
  key.textContent = nameOf(place);
  button.append(key);
  if (option.picture) {
    const image = document.createElement("img");
    image.src = option.picture;
    image.alt = `Option ${nameOf(place)}, a picture`;
    button.append(image);
  } else {
    const text = document.createElement("span");
    text.dir = "auto";
    text.textContent = option.text;
    button.append(text);
  }
  button.addEventListener("click", () => trying(() => choose(place)));
  item.append(button);
  return item;
}

async function next() {
  shown = null;
  const question = await ask(`/v1/exam/${sitting.id}/question`);
  $("place").textContent = `Question ${question.number + 1} of at most ${sitting.length}`;
  $("asked").textContent = question.question;
  $("picture").hidden = !question.picture;
  if (question.picture) $("picture").src = question.picture;
  $("options").className = question.options[0].picture ? "pictures" : "";
  $("options").replaceChildren(...question.options.map(optionItem));
  $("verdict").textContent = "";
  $("next").hidden = $("legend").hidden = true;
  show("exam");
  shown = question;
  $("asked").focus();
}

function mark(place, said) {
  const item = $("options").children[place];
  const button = item.firstElementChild;
  const share = said.probabilities[place];
  const notes = [];
  if (place === said.answer) notes.push("right");
  if (place === said.choice) notes.push("your choice");
  if (place === said.model_choice) notes.push("the model's");
  notes.push(`${(100 * share).toFixed(1)} %`);
  const note = document.createElement("span");
  note.className = "said";
  note.textContent = notes.join(" · ");
  const bar = document.createElement("span");
  bar.className = "bar";
  const part = document.createElement("i");
  part.style.width = `${100 * share}%`;
  bar.append(part);
  button.append(note, bar);
  button.disabled = true;
  if (place === said.answer) item.classList.add("right");
  else if (place === said.choice) item.classList.add("wrong");
}

async function choose(place) {
  if (!shown || place >= shown.options.length) return;
  const question = shown;
  shown = null; // a second key press is no second answer
  let said;
  try {
    said = await ask(`/v1/exam/${sitting.id}/answer`, { choice: place, number: question.number });
  } catch (error) {
    shown = question; // it may be answered again
    if (error.status !== 409) throw error;
    sitting = await ask(`/v1/exam/${sitting.id}`); // it was taken, though its reply was lost
    showScores(sitting.score, sitting.model_score);
    await (sitting.done ? finish() : next());
    return;
  }
  question.options.forEach((_, number) => mark(number, said));
  showScores(said.score, said.model_score);
  const word = (choice) => (choice === said.answer ? "right" : "wrong");
  const own = document.createElement("span");
  own.className = word(said.choice);
  own.textContent = said.choice === said.answer ? "Right." : `Wrong: it is ${nameOf(said.answer)}.`;
  const model = `The model chose ${nameOf(said.model_choice)}, which is ${word(said.model_choice)}. `;
  $("verdict").replaceChildren(own, ` ${model}You ${said.score}, model ${said.model_score}.`);
  sitting.done = said.done;
  $("next").firstChild.textContent = said.done ? "See the result " : "Next question ";
  $("next").hidden = $("legend").hidden = false;
  $("next").focus();
}

async function goOn() {
  if ($("next").hidden) return;
  $("next").hidden = true; // a second click is no second step
  try {
    await (sitting.done ? finish() : next());
  } catch (error) {
    $("next").hidden = false;
    throw error;
  }
}

async function finish() {
  const run = await ask(`/v1/exam/${sitting.id}`);
  const right = (name) => run.steps.filter((step) => step[name] === step.answer).length;
  const compared = Math.sign(run.score - run.model_score);
  $("end-title").textContent =
    `${spoken(run.skill)}: ${["the model is ahead", "a draw", "you are ahead"][compared + 1]}`;
  $("end-score").textContent = run.score;
  $("end-model-score").textContent = run.model_score;
  $("end-right").textContent = `${right("choice")} of ${run.steps.length}`;
  $("end-model-right").textContent = `${right("model_choice")} of ${run.steps.length}`;
  const file = new Blob([JSON.stringify(run, null, 2)], { type: "application/json" });
  $("json").href = URL.createObjectURL(file);
  $("json").download = `exam-${run.skill}-${run.id}.json`;
  show("end");
  $("end-title").focus();
}

$("choose").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(begin);
});
for (const id of ["subject", "grade"]) $(id).addEventListener("change", offer);
$("next").addEventListener("click", () => trying(goOn));
$("again").addEventListener("click", () => {
  show("choose");
  $("subject").focus();
});
$("exam").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const letter = names.indexOf(event.key.toUpperCase());
  const place = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : letter;
  if (event.key.length === 1 && place >= 0) trying(() => choose(place));
});

trying(async () => {
  const exams = await ask("/v1/exam");
  units = exams.units;
  $("rule").textContent =
    `Rule: ${exams.rule}, at most ${exams.length} questions; a score of 100 ends it.`;
  offer();
});
