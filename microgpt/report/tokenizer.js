// Text to tokens and back: `CharTokenizer` and `ByteTokenizer` of microgpt/data/tokenizer.py in JavaScript.

/** A text has a character without a token. */
export class UnknownCharacter extends Error {}

/** One token per character; `texts` are those of all tokens in their order, "" for BOS. */
class CharTokenizer {
  constructor({ texts }) {
    this.texts = texts;
    this.ids = new Map(texts.map((text, id) => [text, id]));
  }

  encode(text) {
    return [...text].map((character, i) => {
      const id = this.ids.get(character);
      if (id === undefined)
        throw new UnknownCharacter(`The model does not know ${named(character)}, character ${i + 1}.`);
      return id;
    });
  }

  decode(tokens) {
    return tokens.map((token) => this.texts[token]).join("");
  }
}

/** One token per byte of the text in UTF-8. */
class ByteTokenizer {
  encode(text) {
    return [...new TextEncoder().encode(text)];
  }

  /** The text without the bytes at its end that are not yet a character. */
  decode(tokens) {
    const bytes = Uint8Array.from(tokens.filter((token) => token < 256));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes, { stream: true });
  }
}

const KINDS = { characters: CharTokenizer, bytes: ByteTokenizer };

/** The tokenizer with this description, or null if text cannot be tokenized here. */
export const makeTokenizer = (description) => description && new KINDS[description.type](description);

/** A character for a reader, with its number, since it may look like another or like nothing. */
function named(character) {
  const code = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  return /[\p{C}\p{Z}\p{M}]/u.test(character) ? code : `“${character}” (${code})`;
}
