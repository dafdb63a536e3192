// The noise of a seed, as torch.randn draws it on a CPU: pictures of this page and of `galip sample` have the same.

// MT19937 (Matsumoto and Nishimura, 1998): a function that gives one 32-bit number after another.
function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let at = 624;
  const twist = () => {
    for (let i = 0; i < 624; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    at = 0;
  };
  return () => {
    if (at === 624) twist();
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

// Box and Muller: 16 uniform numbers in [0, 1), in place, become normal ones, number i and i + 8 out of the same two.
function toNormal(block) {
  for (let i = 0; i < 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - block[i]));
    const angle = 2 * Math.PI * block[i + 8];
    block[i] = radius * Math.cos(angle);
    block[i + 8] = radius * Math.sin(angle);
  }
}

// Seed 0 .. 2**32 - 1 and size, 16 at least (below it torch goes another way) -> Float32Array, standard normal.
// What is left over behind the last whole 16 is drawn anew, as the last 16 of all.
export function noiseOfSeed(seed, size) {
  const next = mersenneTwister(seed);
  const fill = (block) => block.forEach((_, i) => (block[i] = (next() & 0xffffff) / 0x1000000));
  const noise = new Float32Array(size);
  fill(noise);
  for (let i = 0; i + 16 <= size; i += 16) toNormal(noise.subarray(i, i + 16));
  if (size % 16) {
    const tail = noise.subarray(size - 16);
    fill(tail);
    toNormal(tail);
  }
  return noise;
}

// The point at `share` of the arc from noise `a` to `b`: a straight line would leave the length that generators know.
export function arc(a, b, share) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)))));
  if (angle < 1e-4) return a; // the same noise
  const [left, right] = [1 - share, share].map((part) => Math.sin(part * angle) / Math.sin(angle));
  return a.map((value, i) => left * value + right * b[i]);
}
