// How a small CLIP reads a caption: CLIP's byte-pair encoding, then the pieces that it knows (ClipBridge.tokenize).

const SPLIT = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/giu;
// what would tear words: unseen characters, and an opening quote, since BPE reads 're in 'red
const TEARING = /[\u00ad\u200b-\u200d\u2060\ufeff]|(?<![\p{L}\p{N}_])['‘’‚‛](?=[\p{L}\p{N}_])/gu;
const WORD = /[\p{L}\p{N}](?:['’\u0300-\u036f]*[\p{L}\p{N}])*[\u0300-\u036f]*|[\u2600-\u27bf\u{1f000}-\u{1faff}]/gu;
const [START, END] = ["<|startoftext|>", "<|endoftext|>"];

// CLIP's symbols for the 256 bytes, in its order: printable ones are themselves, the others get letters from 256 on.
function byteSymbols() {
  const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte < 256 && byte !== 173);
  const bytes = Array.from({ length: 256 }, (_, byte) => byte);
  const ordered = [...bytes.filter(printable), ...bytes.filter((byte) => !printable(byte))];
  let others = 256;
  return new Map(ordered.map((byte) => [byte, String.fromCodePoint(printable(byte) ? byte : others++)]));
}

// What CLIP's tokenizer does of ftfy: the usual repairs of typed text, not those of broken encodings.
function cleaned(text) {
  const page = new DOMParser().parseFromString(text.replaceAll("<", "&lt;"), "text/html"); // &amp; and the like
  return page.body.textContent
    .replace(/[\ufb00-\ufb06\uff01-\uff5e\u3000]/g, (letter) => letter.normalize("NFKC")) // ligatures, wide letters
    .replace(/[‘’‚‛]/g, "'")
    .replace(/[“”„‟]/g, '"')
    .replace(/[\x00-\x08\x0b\x0e-\x1f\x7f]/g, "")
    .normalize("NFC")
    .replace(/\s+/g, " ")
    .trim()
    .toLowerCase();
}

// CLIP's byte-pair encoding (Sennrich et al., 2016), out of its list of merges, the most frequent first.
export class BytePairs {
  constructor(merges) {
    this.symbols = byteSymbols();
    const letters = [...this.symbols.values()];
    const pieces = [...letters, ...letters.map((letter) => `${letter}</w>`)];
    pieces.push(...merges.map((merge) => merge.replace(" ", "")), START, END);
    this.ranks = new Map(merges.map((merge, rank) => [merge, rank]));
    this.numbers = new Map(pieces.map((piece, number) => [piece, number]));
  }

  // Text -> the numbers of its pieces.
  encode(text) {
    const words = cleaned(text).match(SPLIT) ?? [];
    return words.flatMap((word) => this.pieces(word)).map((piece) => this.numbers.get(piece));
  }

  pieces(word) {
    if (word === START || word === END) return [word];
    let parts = Array.from(new TextEncoder().encode(word), (byte) => this.symbols.get(byte));
    parts[parts.length - 1] += "</w>";
    for (;;) {
      const pairs = parts.slice(1).map((part, i) => `${parts[i]} ${part}`);
      const ranks = pairs.map((pair) => this.ranks.get(pair) ?? Infinity);
      const best = Math.min(...ranks);
      if (best === Infinity) return parts;
      const pair = pairs[ranks.indexOf(best)];
      const merged = [];
      for (let i = 0; i < parts.length; i++) {
        const fits = pairs[i] === pair;
        merged.push(fits ? parts[i] + parts[i + 1] : parts[i]);
        if (fits) i++;
      }
      parts = merged;
    }
  }
}

// A small CLIP's reading: `vocabulary` are the numbers of the pieces that it knows, in the order of its token ids.
export class Reader {
  constructor(bytePairs, vocabulary, contextLength) {
    this.bytePairs = bytePairs;
    this.ids = new Map(vocabulary.map((number, id) => [number, id]));
    this.contextLength = contextLength;
  }

  known(text) {
    const pieces = this.bytePairs.encode(text.replace(TEARING, ""));
    return { pieces, ids: pieces.filter((piece) => this.ids.has(piece)).map((piece) => this.ids.get(piece)) };
  }

  // Words of a caption, as typed, that it can't read.
  unknown(caption) {
    const words = new Set(caption.replace(TEARING, "").match(WORD) ?? []);
    const unread = (word) => this.bytePairs.encode(word.split(/['’]/)[0]).some((piece) => !this.ids.has(piece));
    return [...words].filter(unread);
  }

  // A caption -> its token ids, begin and end mark around it, and what is to be said of it. Throws Error for an empty
  // one, or where no word is known.
  read(caption, which = "The caption") {
    if (!caption.trim()) throw new Error(`${which} is empty: write what the picture should show.`);
    const { pieces, ids } = this.known(caption);
    const unknown = ids.length < pieces.length ? this.unknown(caption) : [];
    if (!ids.length) throw new Error(`This model knows none of the words of “${caption}”.`);
    const room = this.contextLength - 2;
    const notes = [];
    if (unknown.length) notes.push(`Words that this model never saw are left out: ${unknown.join(", ")}.`);
    if (ids.length > room) notes.push(`The caption's end is left out: this model reads ${room} pieces of words.`);
    const [start, end] = [START, END].map((mark) => this.ids.get(this.bytePairs.numbers.get(mark)));
    return { tokens: [start, ...ids.slice(0, room), end], notes };
  }
}
