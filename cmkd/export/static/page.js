// Scores speech in the browser with a student of CMKD. The rules are those of windows_cmkd.py: what is cut, what is
// silent, and how the windows of a recording are averaged. Nothing is sent anywhere; the page's policy forbids it.
import * as ort from "./runtime/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // several need headers that a plain file server does not send

const LONGEST_UTTERANCE = 30; // seconds that are scored as one utterance where no window is asked for
const LONG_AUDIO_WINDOW = 10; // seconds of the windows of longer audio
const SHORTEST_WINDOW = 0.1;
const SILENCE_LEVEL = 1e-3; // of full scale, -60 dB

const element = (id) => document.getElementById(id);
const svg = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

let student, session, recorder, player, isBusy = false;

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

function setBusy(busy) {
  isBusy = busy;
  const isRecording = recorder !== undefined;
  element("file").disabled = busy || isRecording;
  document.querySelector("label[for=file]").classList.toggle("off", busy || isRecording);
  element("record").disabled = busy;
}

// Windows of `total` samples: [first, behind the last]. The last ends where the audio ends.
export function cut(total, longest, size) {
  if (total <= longest) return [[0, total]];
  const windows = [];
  for (let start = 0; start + size < total; start += size) windows.push([start, start + size]);
  windows.push([Math.max(0, total - size), total]);
  return windows;
}

// What share of the time each window speaks for: an instant is shared by all that cover it; silence counts only alone.
export function timeShares(windows) {
  const counted = windows.some((window) => !window.silent) ? windows.filter((window) => !window.silent) : windows;
  const edges = [...new Set(counted.flatMap((window) => [window.start, window.end]))].sort((a, b) => a - b);
  const seconds = new Map(counted.map((window) => [window, 0]));
  for (let index = 0; index + 1 < edges.length; index++) {
    const covering = counted.filter((window) => window.start <= edges[index] && window.end >= edges[index + 1]);
    for (const window of covering)
      seconds.set(window, seconds.get(window) + (edges[index + 1] - edges[index]) / covering.length);
  }
  const sum = [...seconds.values()].reduce((a, b) => a + b, 0);
  return windows.map((window) => (seconds.get(window) ?? 0) / sum);
}

async function decode(content) {
  const context = new OfflineAudioContext(1, 1, student.sampling_rate);
  let sound;
  try {
    sound = await context.decodeAudioData(content);
  } catch (error) {
    throw new Error("the browser cannot read this as sound. Convert it to wav, flac, mp3 or ogg.");
  }
  const samples = new Float32Array(sound.length);
  const powers = []; // of each channel
  for (let number = 0; number < sound.numberOfChannels; number++) {
    const channel = sound.getChannelData(number);
    let power = 0;
    for (let index = 0; index < channel.length; index++) {
      samples[index] += channel[index] / sound.numberOfChannels;
      power += channel[index] ** 2;
    }
    powers.push(power);
  }
  let ofMean = 0;
  for (const value of samples) {
    if (!Number.isFinite(value)) throw new Error("it has samples that are NaN or infinite.");
    ofMean += value ** 2;
  }
  const all = powers.reduce((a, b) => a + b, 0);
  const isAudible = Math.max(...powers) >= SILENCE_LEVEL ** 2 * sound.length;
  if (powers.length > 1 && isAudible && ofMean * powers.length ** 2 < 0.01 * all)
    throw new Error("its channels cancel each other out: their mean is silent though they are not.");
  return samples;
}

async function scoreWindow(samples) {
  const answer = await session.run({
    waveform: new ort.Tensor("float32", samples, [1, samples.length]),
    lengths: new ort.Tensor("int64", BigInt64Array.of(BigInt(samples.length)), [1]),
  });
  return Array.from(answer.scores.data);
}

async function score(samples, seconds) {
  const rate = student.sampling_rate;
  if (samples.length < student.minimum_samples)
    throw new Error(
      `audio of ${(samples.length / rate).toFixed(3)} s is too short: it must be at least ` +
        `${student.minimum_samples / rate} s long.`,
    );
  const longest = Math.round((seconds ?? LONGEST_UTTERANCE) * rate);
  const size = Math.round((seconds ?? LONG_AUDIO_WINDOW) * rate);
  const windows = [];
  const pieces = cut(samples.length, longest, size);
  for (const [first, stop] of pieces) {
    say(`Scoring: ${windows.length} of ${pieces.length} windows …`);
    await new Promise((resolve) => setTimeout(resolve)); // lets the browser draw
    const piece = samples.slice(first, stop);
    const level = Math.sqrt(piece.reduce((sum, value) => sum + value * value, 0) / piece.length);
    const values = await scoreWindow(piece);
    windows.push({ start: first / rate, end: stop / rate, silent: level < SILENCE_LEVEL, values });
  }
  const shares = timeShares(windows);
  const mean = student.dimensions.map((_, index) =>
    windows.reduce((sum, window, number) => sum + (shares[number] ? shares[number] * window.values[index] : 0), 0),
  );
  return {
    ...named(mean),
    duration: windows.at(-1).end,
    silent: windows.every((window) => window.silent),
    timeline: windows.map(({ start, end, silent, values }) => ({ start, end, silent, ...named(values) })),
  };
}

function named(values) {
  const [minimum, maximum] = student.label_scale;
  const known = student.dimensions.map((name, index) => [name, values[index]]);
  const rated = known.filter(([name]) => student.rated_dimensions.includes(name));
  return {
    scores: Object.fromEntries(rated),
    ratings: Object.fromEntries(rated.map(([name, value]) => [name, value * (maximum - minimum) + minimum])),
  };
}

function row(cells, isHead = false) {
  const made = document.createElement("tr");
  cells.forEach((text, index) => {
    const cell = document.createElement(isHead || !index ? "th" : "td");
    if (isHead || !index) cell.scope = isHead ? "col" : "row";
    cell.textContent = text;
    made.append(cell);
  });
  return made;
}

function play(samples, window) {
  player?.close();
  player = new AudioContext();
  const rate = student.sampling_rate;
  const piece = samples.subarray(Math.round(window.start * rate), Math.round(window.end * rate));
  const buffer = player.createBuffer(1, piece.length, rate);
  buffer.copyToChannel(piece, 0);
  const source = new AudioBufferSourceNode(player, { buffer });
  source.connect(player.destination);
  source.start();
  say(`Playing ${window.start.toFixed(2)} to ${window.end.toFixed(2)} s`);
}

function chart(samples, answer) {
  const [width, height, left] = [880, 220, 34];
  const x = (seconds) => left + ((width - left) * seconds) / answer.duration;
  const y = (value) => height - height * Math.min(1, Math.max(0, value));
  const made = svg("svg", { viewBox: `0 -8 ${width} ${height + 32}`, role: "img" });
  made.setAttribute("aria-label", "Scores over time, above the waveform");
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    made.append(svg("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }));
    const text = svg("text", { x: 0, y: y(value) + 4 });
    text.textContent = value.toFixed(2);
    made.append(text);
  }
  const columns = 420;
  const loudest = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
  let path = "";
  for (let column = 0; column < columns; column++) {
    const from = Math.floor((column * samples.length) / columns);
    const to = Math.max(from + 1, Math.floor(((column + 1) * samples.length) / columns));
    let most = 0;
    for (let index = from; index < to && index < samples.length; index++) most = Math.max(most, Math.abs(samples[index]));
    const at = left + ((width - left) * (column + 0.5)) / columns;
    const half = (0.45 * height * most) / loudest;
    path += `M${at.toFixed(1)} ${(height / 2 - half).toFixed(1)}V${(height / 2 + half).toFixed(1)}`;
  }
  made.append(svg("path", { class: "wave", d: path }));
  for (const name of student.rated_dimensions) {
    const steps = answer.timeline.map(({ start, end, scores }) => `M${x(start)} ${y(scores[name])}H${x(end)}`);
    made.append(svg("path", { class: `line ${name}`, d: steps.join("") }));
  }
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 1800].find((seconds) => answer.duration / seconds <= 12) ?? 3600;
  for (let seconds = 0; seconds <= answer.duration; seconds += step) {
    const text = svg("text", { x: x(seconds), y: height + 18, "text-anchor": seconds ? "middle" : "start" });
    text.textContent = `${Number(seconds.toFixed(1))} s`;
    if (x(seconds) < width - 12) made.append(text);
  }
  for (const window of answer.timeline) {
    const pane = svg("rect", {
      class: "pane", x: x(window.start), y: 0, width: x(window.end) - x(window.start), height, tabindex: 0, role: "button",
      "aria-label": `Hear ${window.start.toFixed(2)} to ${window.end.toFixed(2)} s`,
    });
    pane.addEventListener("click", () => play(samples, window));
    pane.addEventListener("keydown", (event) => event.key === "Enter" && play(samples, window));
    made.append(pane);
  }
  return made;
}

function show(name, samples, answer) {
  element("name").textContent = name;
  const [minimum, maximum] = student.label_scale;
  element("scale").textContent = `Rating, ${minimum} to ${maximum}`;
  element("scores").tBodies[0].replaceChildren(
    ...student.rated_dimensions.map((dimension) => {
      const made = row([dimension, answer.scores[dimension].toFixed(3), answer.ratings[dimension].toFixed(2)]);
      made.dataset.dimension = dimension;
      made.dataset.score = answer.scores[dimension];
      return made;
    }),
  );
  element("chart").replaceChildren(chart(samples, answer));
  element("legend").replaceChildren(
    ...student.rated_dimensions.map((dimension) => {
      const made = document.createElement("li");
      const key = svg("svg", { viewBox: "0 0 26 10" });
      key.append(svg("path", { class: `line ${dimension}`, d: "M0 5H26" }));
      made.append(key, dimension);
      return made;
    }),
  );
  element("timeline").tHead.replaceChildren(row(["From, s", "To, s", ...student.rated_dimensions, ""], true));
  element("timeline").tBodies[0].replaceChildren(
    ...answer.timeline.map((window) => {
      const values = student.rated_dimensions.map((dimension) => window.scores[dimension].toFixed(3));
      const made = row([window.start.toFixed(2), window.end.toFixed(2), ...values, window.silent ? "silent" : ""]);
      made.addEventListener("click", () => play(samples, window));
      return made;
    }),
  );
  URL.revokeObjectURL(element("download").href);
  element("download").href = URL.createObjectURL(new Blob([JSON.stringify({ name, ...answer }, null, 2)]));
  element("download").download = `${name}.json`;
  element("answer").hidden = false;
}

async function handle(name, content) {
  if (isBusy) return;
  setBusy(true);
  element("answer").hidden = true;
  try {
    const given = element("window").value;
    const seconds = given === "" ? undefined : Number(given);
    if (seconds !== undefined && !(seconds >= SHORTEST_WINDOW && Number.isFinite(seconds)))
      throw new Error(`a window of ${given} s: must be at least ${SHORTEST_WINDOW} s, or empty.`);
    say("Reading …");
    const samples = await decode(content);
    const began = performance.now();
    const answer = await score(samples, seconds);
    show(name, samples, answer);
    const took = (performance.now() - began) / 1000;
    const silent = answer.silent ? " All of it is silent: the scores mean nothing." : "";
    say(`${answer.duration.toFixed(2)} s of audio, scored in ${took.toFixed(2)} s.${silent}`);
  } catch (error) {
    say(`${name}: ${error.message}`, true);
  } finally {
    setBusy(false);
  }
}

async function record() {
  if (recorder) return recorder.stop();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    return say(`No microphone: ${error.message}. Allow this page to use it, or choose a file.`, true);
  }
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", async () => {
    stream.getTracks().forEach((track) => track.stop());
    recorder = undefined;
    element("record").textContent = "Record";
    await handle("recording", await new Blob(parts).arrayBuffer());
  });
  recorder.start();
  element("record").textContent = "Stop";
  setBusy(false);
  say("Recording …");
}

async function begin() {
  setBusy(true);
  student = await (await fetch("student.json")).json();
  session = await ort.InferenceSession.create(student.file, { executionProviders: ["wasm"] });
  element("student").textContent =
    `Student: ${student.model} ${student.identity}, ${student.encoder}, ${student.precision}; licence: ` +
    `${student.licence ?? "not said"}.`;
  setBusy(false);
  say("Ready.");
}

element("file").addEventListener("change", async () => {
  const [file] = element("file").files;
  if (file) await handle(file.name, await file.arrayBuffer());
  element("file").value = "";
});
element("record").addEventListener("click", record);
element("input").addEventListener("submit", (event) => event.preventDefault());
begin().catch((error) => say(`The model cannot be loaded: ${error.message}. Serve this folder over HTTP.`, true));
