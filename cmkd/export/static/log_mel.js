// Whisper's input, as onnx_cmkd.py computes it: the frames that hear the utterance, of log-mel energies.

export class LogMel {
  // The fields of `log_mel` in student.json.
  constructor({ num_mel_bins, sampling_rate, window_samples, hop_samples, maximum_samples }) {
    Object.assign(this, { bins: num_mel_bins, window: window_samples, hop: hop_samples, most: maximum_samples });
    const frequencies = 1 + Math.floor(window_samples / 2);
    this.filters = melFilters(num_mel_bins, frequencies, sampling_rate);
    this.hann = Float64Array.from({ length: window_samples }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / window_samples));
    this.cosine = Float64Array.from({ length: window_samples }, (_, n) => Math.cos((2 * Math.PI * n) / window_samples));
    this.sine = Float64Array.from({ length: window_samples }, (_, n) => Math.sin((2 * Math.PI * n) / window_samples));
    this.power = new Float64Array(frequencies);
  }

  // Samples -> {values: Float32Array (bins x frames), frames}.
  of(samples) {
    const { bins, window, hop, most } = this;
    const reach = Math.floor(window / 2);
    const heard = new Float64Array(Math.min(most, samples.length + window));
    heard.set(samples.subarray(0, heard.length));
    const at = (index) => heard[index < 0 ? -index : index >= heard.length ? 2 * heard.length - 2 - index : index];
    const all = Math.min(Math.ceil((samples.length + reach) / hop), Math.floor(most / hop));
    const frames = Math.ceil(samples.length / hop);
    const logs = new Float64Array(bins * all);
    const frame = new Float64Array(window);
    let loudest = -Infinity;
    for (let number = 0; number < all; number++) {
      for (let index = 0; index < window; index++) frame[index] = at(number * hop - reach + index) * this.hann[index];
      this.transform(frame);
      for (let bin = 0; bin < bins; bin++) {
        let sum = 0;
        for (const [frequency, weight] of this.filters[bin]) sum += weight * this.power[frequency];
        const log = Math.log10(Math.max(sum, 1e-10));
        logs[bin * all + number] = log;
        loudest = Math.max(loudest, log);
      }
    }
    const values = new Float32Array(bins * frames);
    for (let bin = 0; bin < bins; bin++)
      for (let number = 0; number < frames; number++)
        values[bin * frames + number] = (Math.max(logs[bin * all + number], loudest - 8) + 4) / 4;
    return { values, frames };
  }

  transform(frame) {
    const size = frame.length;
    for (let frequency = 0; frequency < this.power.length; frequency++) {
      let [real, imaginary, phase] = [0, 0, 0];
      for (let index = 0; index < size; index++) {
        real += frame[index] * this.cosine[phase];
        imaginary += frame[index] * this.sine[phase];
        phase += frequency;
        if (phase >= size) phase -= size;
      }
      this.power[frequency] = real * real + imaginary * imaginary;
    }
  }
}

// Triangles of area 1 on Slaney's scale up to 8 kHz; of each filter the frequencies that it hears, and their weights.
function melFilters(count, frequencies, rate) {
  const mels = (hertz) => (hertz < 1000 ? (3 * hertz) / 200 : 15 + (27 * Math.log(hertz / 1000)) / Math.log(6.4));
  const hertz = (mel) => (mel < 15 ? (mel * 200) / 3 : 1000 * Math.exp(((mel - 15) * Math.log(6.4)) / 27));
  const corners = Array.from({ length: count + 2 }, (_, index) => hertz((mels(8000) * index) / (count + 1)));
  return Array.from({ length: count }, (_, bin) => {
    const [low, centre, high] = corners.slice(bin, bin + 3);
    const filter = [];
    for (let index = 0; index < frequencies; index++) {
      const frequency = (index * Math.floor(rate / 2)) / (frequencies - 1);
      const height = Math.min((frequency - low) / (centre - low), (high - frequency) / (high - centre));
      if (height > 0) filter.push([index, (height * 2) / (high - low)]);
    }
    return filter;
  });
}
