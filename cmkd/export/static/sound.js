// From the bytes of a file to the samples that a student hears: all of the file, or an error that says why not.

const SILENCE_LEVEL = 1e-3; // of full scale, -60 dB

// Samples (mono, at `rate` Hz) of a file in any format that the browser reads.
export async function decode(content, rate) {
  const promised = secondsPromised(content);
  const context = new OfflineAudioContext(1, 1, rate);
  let sound;
  try {
    sound = await context.decodeAudioData(content); // which takes the bytes away
  } catch (error) {
    throw new Error("the browser cannot read this as sound. Convert it to wav, flac, mp3 or ogg.");
  }
  if (promised !== undefined && sound.duration < promised - 0.1)
    throw new Error(
      `it is truncated: its header promises ${promised.toFixed(2)} s of sound, but ${sound.duration.toFixed(2)} s can be ` +
        "read. Copy or convert it again.",
    );
  return mean(sound);
}

function mean(sound) {
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

export function isSilent(samples) {
  const power = samples.reduce((sum, value) => sum + value * value, 0) / samples.length;
  return Math.sqrt(power) < SILENCE_LEVEL;
}

// Browsers score what is left of a truncated file and say nothing. Where its header says how long it is, we ask that:
// bytes of wav, mp3 (with the header of an encoder) and mp4, which throw here, and seconds of flac, which are returned.
function secondsPromised(content) {
  const view = new DataView(content);
  const word = (at) => (at + 4 <= view.byteLength ? String.fromCharCode(...new Uint8Array(content, at, 4)) : "");
  const demand = (bytes) => {
    if (bytes > view.byteLength)
      throw new Error(
        `it is truncated: its header promises ${bytes.toLocaleString("en")} bytes, but it has ` +
          `${view.byteLength.toLocaleString("en")}. Copy or convert it again.`,
      );
  };
  if (word(0) === "RIFF" && word(8) === "WAVE") {
    for (let at = 12; at + 8 <= view.byteLength; ) {
      const size = view.getUint32(at + 4, true);
      if (word(at) === "data" && size !== 0xffffffff) demand(at + 8 + size); // that is what a pipe writes: not known
      at += 8 + size + (size % 2);
    }
  } else if (word(0) === "fLaC" && view.byteLength >= 26) {
    const rate = view.getUint32(18) >>> 12;
    const samples = (view.getUint8(21) & 15) * 2 ** 32 + view.getUint32(22);
    return rate && samples ? samples / rate : undefined;
  } else if (word(4) === "ftyp") {
    for (let at = 0; at + 8 <= view.byteLength; ) {
      const size = view.getUint32(at);
      if (size < 8) break; // 0: to the end; 1: a size of 64 bits
      demand(at + size);
      at += size;
    }
  } else {
    const at = word(0).startsWith("ID3") && view.byteLength >= 10 ? 10 + sevenBits(view, 6) : 0;
    for (let tag = at; tag < Math.min(at + 64, view.byteLength - 16); tag++) {
      if (word(tag) !== "Xing" && word(tag) !== "Info") continue;
      const flags = view.getUint32(tag + 4);
      if (flags & 2) demand(at + view.getUint32(tag + 8 + (flags & 1 ? 4 : 0)));
      break;
    }
  }
  return undefined;
}

function sevenBits(view, at) {
  return [0, 1, 2, 3].reduce((sum, byte) => sum * 128 + (view.getUint8(at + byte) & 127), 0);
}
