// Scores speech in the browser with a student of CMKD. The rules are those of windows_cmkd.py: what is cut, what is
// silent, and how the windows of a recording are averaged. Nothing is sent anywhere; the page's policy forbids it.
import * as ort from "./runtime/ort.wasm.min.mjs";
import { LogMel } from "./log_mel.js";
import { decode, isSilent } from "./sound.js";
import { Timeline } from "./timeline.js";

ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
// Several threads need headers that a plain file server does not send; browsers then say that the page is isolated.
ort.env.wasm.numThreads = window.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

const LONGEST_UTTERANCE = 30; // seconds that are scored as one utterance where no window is asked for
const LONG_AUDIO_WINDOW = 10; // seconds of the windows of longer audio
const SHORTEST_WINDOW = 0.1;

const element = (id) => document.getElementById(id);

let student, session, logMel, timeline, recorder, player, isBusy = false;

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
// Windows follow each other, and only the last one overlaps the one before.
export function timeShares(windows) {
  const counted = windows.some((window) => !window.silent) ? windows.filter((window) => !window.silent) : windows;
  const seconds = new Map(
    counted.map((window, number) => {
      const shared = (other) => (other ? Math.max(0, Math.min(window.end, other.end) - Math.max(window.start, other.start)) : 0);
      return [window, window.end - window.start - (shared(counted[number - 1]) + shared(counted[number + 1])) / 2];
    }),
  );
  const sum = [...seconds.values()].reduce((a, b) => a + b, 0);
  return windows.map((window) => (seconds.get(window) ?? 0) / sum);
}

async function scoreWindow(samples) {
  let input, length = samples.length;
  if (logMel) {
    const { values, frames } = logMel.of(samples);
    [input, length] = [{ log_mel: new ort.Tensor("float32", values, [1, logMel.bins, frames]) }, frames];
  } else input = { waveform: new ort.Tensor("float32", samples, [1, length]) };
  const answer = await session.run({ ...input, lengths: new ort.Tensor("int64", BigInt64Array.of(BigInt(length)), [1]) });
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
    const values = await scoreWindow(piece);
    windows.push({ start: first / rate, end: stop / rate, silent: isSilent(piece), values });
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

function stop() {
  player?.close();
  player = undefined;
  timeline.mark(undefined);
}

// Plays a window; the one that is playing stops.
function play(samples, window) {
  const isPlaying = timeline.playing === window;
  stop();
  if (isPlaying) return say(`Stopped at ${window.start.toFixed(2)} to ${window.end.toFixed(2)} s`);
  const context = (player = new AudioContext());
  const rate = student.sampling_rate;
  const piece = samples.subarray(Math.round(window.start * rate), Math.round(window.end * rate));
  const buffer = context.createBuffer(1, piece.length, rate);
  buffer.copyToChannel(piece, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.addEventListener("ended", () => player === context && stop());
  source.start();
  timeline.mark(window);
  const follow = () => {
    if (player !== context) return;
    timeline.moveTo(Math.min(window.end, window.start + context.currentTime));
    requestAnimationFrame(follow);
  };
  follow();
  say(`Playing ${window.start.toFixed(2)} to ${window.end.toFixed(2)} s`);
}

function show(name, samples, answer) {
  element("name").textContent = name;
  const [minimum, maximum] = student.label_scale;
  element("scale").textContent = `Rating, ${minimum} to ${maximum}`;
  element("scores").tBodies[0].replaceChildren(
    ...student.rated_dimensions.map((dimension) => {
      const made = row(["", answer.scores[dimension].toFixed(3), answer.ratings[dimension].toFixed(2)]);
      const key = document.createElement("span");
      key.className = `key ${dimension}`;
      made.cells[0].append(key, dimension);
      made.dataset.dimension = dimension;
      made.dataset.score = answer.scores[dimension];
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
  timeline = new Timeline(element("chart"), student.rated_dimensions, (window) => play(samples, window));
  element("answer").hidden = false;
  timeline.show(samples, answer);
}

async function handle(name, content) {
  if (isBusy) return;
  setBusy(true);
  if (timeline) stop();
  element("answer").hidden = true;
  try {
    const given = element("window").value;
    const seconds = given === "" ? undefined : Number(given);
    const most = student.maximum_samples ? student.maximum_samples / student.sampling_rate : Infinity;
    if (seconds !== undefined && !(seconds >= SHORTEST_WINDOW && seconds <= most && Number.isFinite(seconds)))
      throw new Error(
        `a window of ${given} s: must be at least ${SHORTEST_WINDOW} s` +
          `${most < Infinity ? ` and at most ${most} s, which is what the student hears` : ""}, or empty.`,
      );
    say("Reading …");
    const samples = await decode(content, student.sampling_rate);
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
    element("record").classList.remove("recording");
    await handle("recording", await new Blob(parts).arrayBuffer());
  });
  recorder.start();
  element("record").textContent = "Stop";
  element("record").classList.add("recording");
  setBusy(false);
  say("Recording …");
}

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`the server answers ${answer.status} for ${address}`);
  return answer;
}

// The graph; how much of it is there is said meanwhile.
async function graph() {
  const content = new Uint8Array(student.size);
  const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
  let there = 0;
  for (const reader = (await fetched(student.file)).body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (there + value.length <= student.size) content.set(value, there);
    there += value.length;
    say(`Loading the model: ${megabytes(there)} of ${megabytes(student.size)} MB …`);
  }
  if (there !== student.size) throw new Error(`${student.file} has ${there} bytes, but must have ${student.size}`);
  return content;
}

async function begin() {
  setBusy(true);
  student = await (await fetched("student.json")).json();
  if (student.log_mel) logMel = new LogMel(student.log_mel);
  const options = { executionProviders: ["wasm"], enableMemPattern: false }; // no plan kept for each length
  session = await ort.InferenceSession.create(await graph(), options);
  element("student").textContent =
    `Student: ${student.model} ${student.identity}, ${student.encoder}, ${student.precision}; licence: ` +
    `${student.licence ?? "not said"}.`;
  setBusy(false);
  say("Ready.");
}

async function take(file) {
  if (file) await handle(file.name, await file.arrayBuffer());
}

element("file").addEventListener("change", async () => {
  await take(element("file").files[0]);
  element("file").value = "";
});
element("record").addEventListener("click", record);
element("input").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (!recorder) take(event.dataTransfer.files[0]);
});
begin().catch((error) => say(`The model cannot be loaded: ${error.message}. Serve this folder over HTTP.`, true));
