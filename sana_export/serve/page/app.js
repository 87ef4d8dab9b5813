// The page of `sana-export serve`: order a picture, watch it being painted, keep it in this browser.

const $ = (selector) => document.querySelector(selector);
const prompt = $("#prompt"), negative = $("#negative"), seed = $("#seed"), steps = $("#steps"), guidance = $("#guidance");
const KEPT = 120; // pictures in the gallery

let about; // what /v1/capabilities says
let key = sessionStorage.getItem("key") ?? "";
let active = []; // jobs under way: {id, model, pane}

// ---- the server

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    await unlock();
    return ask(path, options);
  }
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({ error: { message: `${answer.status}` } }));
    throw Object.assign(new Error(error.message), { status: answer.status });
  }
  return answer;
}

let unlocking;
function unlock() {
  unlocking ??= new Promise((resolve) => {
    $("#key").value = "";
    $("#door").showModal();
    $("#door").addEventListener("close", () => {
      key = $("#key").value;
      sessionStorage.setItem("key", key);
      unlocking = undefined;
      resolve();
    }, { once: true });
  });
  return unlocking;
}

async function* events(path) {
  const reader = (await ask(path)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const [, name, data] = /^event: (.*)\ndata: (.*)$/.exec(part) ?? [];
      if (name) yield { name, data: JSON.parse(data) };
    }
  }
}

// ---- the form

function chips(box, name, rows, chosen) {
  box.replaceChildren(...rows.map(({ value, text, ratio }) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name, value, checked: value === chosen });
    label.append(input);
    if (ratio) {
      const shape = document.createElement("i");
      shape.style.width = `${14 * Math.min(1, ratio)}px`;
      shape.style.height = `${14 / Math.max(1, ratio)}px`;
      label.append(shape);
    }
    label.append(text);
    return label;
  }));
}

const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
const modelsChosen = () => (chosen("model") === "*" ? about.models.map((model) => model.id) : [chosen("model")]);
const sides = (size) => size.split("x").map(Number);

function offerModels() {
  const rows = about.models.map((model) => ({ value: model.id, text: model.id }));
  if (rows.length > 1) rows.push({ value: "*", text: "side by side" });
  $("#models").hidden = rows.length < 2;
  chips($("#models .chips"), "model", rows, rows.some((row) => row.value === remembered.model) ? remembered.model : rows[0].value);
  offerSizes();
}

function offerSizes() {
  const [model, ...others] = modelsChosen().map((name) => about.models.find(({ id }) => id === name));
  const sizes = model.sizes.filter((size) => others.every((other) => other.sizes.includes(size))); // what all can paint
  const now = chosen("size") ?? remembered.size;
  const rows = sizes.map((size) => {
    const [width, height] = sides(size);
    return { value: size, text: `${width} × ${height}`, ratio: width / height };
  });
  chips($("#sizes .chips"), "size", rows, [now, model.defaults.size, sizes[0]].find((size) => sizes.includes(size)));
}

function tell() {
  $("#steps-told").value = steps.value;
  $("#new-seed").hidden = !seed.value;
  $("#guidance-told").value = Number(guidance.value) > 1 ? Number(guidance.value).toFixed(1) : "off";
}

const remembered = JSON.parse(localStorage.getItem("order") ?? "{}");
function remember() {
  const order = { prompt: prompt.value, negative: negative.value, seed: seed.value, steps: steps.value, guidance: guidance.value };
  localStorage.setItem("order", JSON.stringify({ ...order, size: chosen("size"), model: chosen("model") }));
}

function fill(order) {
  prompt.value = order.prompt ?? "";
  negative.value = order.negative ?? "";
  seed.value = order.seed ?? "";
  $("details").open = Boolean(negative.value);
  if (order.steps) steps.value = order.steps;
  if (order.guidance !== undefined) guidance.value = order.guidance;
  for (const name of ["model", "size"]) {
    const input = [...document.querySelectorAll(`input[name="${name}"]`)].find(({ value }) => value === order[name]);
    if (input) input.checked = true;
    if (name === "model") offerSizes();
  }
  tell();
}

// ---- painting

async function paint() {
  if (!prompt.value.trim() || active.length || !about) return;
  complain("");
  remember();
  const order = {
    prompt: prompt.value, steps: Number(steps.value), guidance: Number(guidance.value), size: chosen("size"),
    seed: seed.value ? Number(seed.value) : crypto.getRandomValues(new Uint32Array(1))[0],
  };
  if (negative.value.trim()) order.negative_prompt = negative.value;
  $("#panes").replaceChildren();
  const jobs = modelsChosen().map((model) => ({ model, order: { ...order, model }, pane: makePane(model, order.size) }));
  active = jobs;
  show();
  if (matchMedia("(max-width: 780px)").matches) $("#easel").scrollIntoView({ behavior: "smooth" });
  await Promise.all(jobs.map(start));
  settle();
}

async function start(job) {
  try {
    const body = JSON.stringify(job.order);
    const answer = await ask("/v1/jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    job.id = (await answer.json()).id;
    if (job.cancelled) await ask(`/v1/jobs/${job.id}`, { method: "DELETE" });
    noteJobs();
    await watch(job);
  } catch (error) {
    failed(job, error);
  }
}

async function watch(job) {
  let last;
  for (;;) {
    try {
      for await (const { name, data } of events(`/v1/jobs/${job.id}/events`)) {
        last = data;
        progress(job, data);
        if (name === "over") return finish(job, data);
      }
    } catch (error) {
      if (error.status || !last) throw error; // the job itself is gone; a broken line is tried again
    }
    await new Promise((resolve) => setTimeout(resolve, 700));
    if (document.hidden === false && last) await ask(`/v1/jobs/${job.id}`);
  }
}

async function finish(job, data) {
  if (data.status === "done") {
    const answer = await ask(`/v1/jobs/${job.id}/result`);
    const { prompt, negative_prompt: negative } = job.order;
    const picture = { id: job.id, at: Date.now(), prompt, negative, ...pick(data), blob: await answer.blob() };
    finePicture(job.pane, picture);
    keep(picture);
  } else if (data.error) {
    failed(job, new Error(data.error.message));
  } else {
    caption(job.pane, "cancelled", "");
    job.pane.classList.add("stopped");
  }
}

const pick = ({ model, size, steps, guidance, solver, seed, pictures }) => ({ model, size, steps, guidance, solver, seed, seconds: pictures[0].seconds });

function failed(job, error) {
  complain(error.message);
  caption(job.pane, "not painted", "");
}

async function cancel() {
  await Promise.all(active.map(async (job) => {
    job.cancelled = true;
    if (job.id) await ask(`/v1/jobs/${job.id}`, { method: "DELETE" }).catch(() => {});
  }));
}

function settle() {
  active = [];
  noteJobs();
  show();
}

function noteJobs() {
  const jobs = active.filter((job) => job.id).map(({ id, model, order }) => ({ id, model, order }));
  sessionStorage.setItem("jobs", JSON.stringify(jobs));
}

async function resume() {
  const jobs = JSON.parse(sessionStorage.getItem("jobs") ?? "[]");
  if (!jobs.length) return;
  $("#panes").replaceChildren();
  active = jobs.map((job) => ({ ...job, pane: makePane(job.model, job.order.size) }));
  show();
  await Promise.all(active.map((job) => watch(job).catch((error) => failed(job, error))));
  settle();
}

// ---- what is seen

function makePane(model, size) {
  const [width, height] = sides(size);
  const pane = document.createElement("figure");
  pane.className = "pane";
  pane.innerHTML = '<div class="frame"><img alt="" hidden></div><div class="bar" role="progressbar" aria-label="Painting" aria-valuemin="0" aria-valuemax="100"><span></span></div><figcaption><span>sending</span><span></span></figcaption>';
  pane.querySelector(".frame").style.aspectRatio = `${width} / ${height}`;
  pane.style.maxWidth = `calc(68vh * ${width / height})`;
  pane.dataset.model = about && about.models.length > 1 ? model : "";
  $("#panes").append(pane);
  return pane;
}

function progress(job, data) {
  const { pane } = job;
  const share = data.stage === "paint" ? 0.05 + 0.85 * data.step / data.of : data.stage === "decode" ? 0.95 : data.stage ? 0.05 : 0;
  bar(pane, data.status === "done" ? 1 : share);
  if (data.preview) {
    const image = pane.querySelector("img");
    Object.assign(image, { src: data.preview, className: "rough", hidden: false, alt: "what is there so far" });
  }
  const left = data.seconds_left == null ? "" : `${time(data.seconds_left)} left`;
  if (data.status === "queued") caption(pane, data.queue_position > 1 ? `${data.queue_position} jobs first` : "next in line", left);
  else if (data.status === "painting") caption(pane, doing(data), left);
  document.title = data.status === "painting" ? `${Math.round(100 * share)} % · Sana` : "Sana";
}

const doing = ({ stage, step, of }) => stage === "paint" ? `step ${step} of ${of}` : stage === "decode" ? "finishing" : stage === "text" ? "reading the prompt" : "getting ready";

function finePicture(pane, picture) {
  const image = pane.querySelector("img");
  const url = URL.createObjectURL(picture.blob);
  image.onload = () => { image.className = "fine"; };
  Object.assign(image, { src: url, hidden: false, alt: picture.prompt });
  pane.classList.add("done");
  caption(pane, `seed ${picture.seed}`, `${picture.steps} steps in ${time(picture.seconds)}`);
}

function bar(pane, share) {
  const element = pane.querySelector(".bar");
  element.setAttribute("aria-valuenow", Math.round(100 * share));
  element.firstChild.style.width = `${100 * share}%`;
}

function caption(pane, left, right) {
  const [first, second] = pane.querySelectorAll("figcaption span");
  first.textContent = pane.dataset.model ? `${pane.dataset.model}: ${left}` : left;
  second.textContent = right;
}

const time = (seconds) => seconds >= 90 ? `${Math.round(seconds / 60)} min` : seconds >= 10 ? `${Math.round(seconds)} s` : `${seconds.toFixed(1)} s`;

function complain(message) {
  $("#error").textContent = message;
  $("#error").hidden = !message;
}

function show() {
  const busy = active.length > 0;
  $("#paint").disabled = busy;
  $("#paint").textContent = busy ? "Painting…" : "Paint";
  $("#cancel").hidden = !busy;
  if (!busy) document.title = "Sana";
  health();
}

async function health() {
  const state = $("#health");
  try {
    const { painting, waiting } = await (await fetch("/healthz")).json();
    state.className = painting ? "busy" : "";
    state.textContent = (painting ? "painting" : "ready") + (waiting ? `, ${waiting} waiting` : "");
  } catch {
    state.className = "away";
    state.textContent = "no server";
  }
}

// ---- the gallery, kept in this browser

const shelf = new Promise((resolve) => {
  const request = indexedDB.open("sana", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id" });
  request.onsuccess = () => { request.result.onversionchange = () => request.result.close(); resolve(request.result); };
  request.onerror = () => resolve(null); // private windows may have none: then pictures last as long as the page
  setTimeout(resolve, 2000, null); // nor may a shelf that is stuck hold up the painting
});
let pictures = [];

async function store(change) {
  const database = await shelf;
  if (!database) return undefined;
  return new Promise((resolve, reject) => {
    const request = change(database.transaction("pictures", "readwrite").objectStore("pictures"));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  }).catch(() => undefined);
}

function keep(picture) {
  pictures = [picture, ...pictures.filter(({ id }) => id !== picture.id)];
  store((all) => all.put({ ...picture, url: undefined }));
  for (const old of pictures.splice(KEPT)) store((all) => all.delete(old.id));
  hang();
}

function forget(picture) {
  pictures = pictures.filter((each) => each !== picture);
  store((all) => all.delete(picture.id));
  hang();
}

function hang() {
  $("#gallery").hidden = !pictures.length;
  $("#gallery ul").replaceChildren(...pictures.map((picture) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const image = document.createElement("img"), text = document.createElement("span");
    picture.url ??= URL.createObjectURL(picture.blob);
    Object.assign(image, { src: picture.url, alt: "", loading: "lazy" });
    text.textContent = picture.prompt;
    button.type = "button";
    button.append(image, text);
    button.onclick = () => view(picture);
    item.append(button);
    return item;
  }));
}

function view(picture) {
  const viewer = $("#viewer");
  Object.assign(viewer.querySelector("img"), { src: picture.url, alt: picture.prompt });
  $("#viewer-prompt").textContent = picture.prompt;
  const rows = {
    Size: picture.size.replace("x", " × "), Seed: picture.seed, Steps: picture.steps, Guidance: picture.guidance,
    Solver: picture.solver, Model: picture.model, Without: picture.negative, Took: time(picture.seconds), Painted: new Date(picture.at).toLocaleString(),
  };
  viewer.querySelector("dl").replaceChildren(...Object.entries(rows).filter(([, value]) => value !== undefined && value !== "").flatMap(([name, value]) => {
    const term = document.createElement("dt"), detail = document.createElement("dd");
    term.textContent = name;
    detail.textContent = value;
    return [term, detail];
  }));
  Object.assign($("#save"), { href: picture.url, download: `sana-${picture.seed}.png` });
  $("#again").onclick = () => { viewer.close(); fill(picture); remember(); prompt.focus(); scrollTo({ top: 0, behavior: "smooth" }); };
  $("#remove").onclick = () => { viewer.close(); forget(picture); };
  viewer.showModal();
}

// ---- begin

$("#order").addEventListener("submit", (event) => { event.preventDefault(); paint(); });
$("#order").addEventListener("input", (event) => { if (event.target.name === "model") offerSizes(); tell(); });
$("#cancel").addEventListener("click", cancel);
$("#new-seed").addEventListener("click", () => { seed.value = ""; seed.focus(); tell(); });
$("#close").addEventListener("click", () => $("#viewer").close());
$("#viewer").addEventListener("click", (event) => { if (event.target === $("#viewer")) $("#viewer").close(); });
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("#order").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && active.length && !document.querySelector("dialog[open]")) cancel(); });
setInterval(() => { if (!document.hidden) health(); }, 5000);

try {
  about = await (await ask("/v1/capabilities")).json();
  const { defaults } = about.models[0];
  steps.max = Math.min(about.limits.steps, Math.max(50, 2 * defaults.steps));
  guidance.max = Math.min(about.limits.guidance, 15);
  offerModels();
  fill({ steps: defaults.steps, guidance: defaults.guidance, ...remembered });
} catch (error) {
  complain(error.message);
}
async function remembering() {
  const kept = (await store((all) => all.getAll())) ?? [];
  const fresh = new Set(pictures.map(({ id }) => id));
  pictures = [...pictures, ...kept.filter(({ id }) => !fresh.has(id)).sort((a, b) => b.at - a.at)];
  hang();
}
if (about) await Promise.all([remembering(), resume(), health()]);
