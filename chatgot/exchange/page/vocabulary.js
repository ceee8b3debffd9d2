// Text to ids and back: the end-of-text token is id 0, then one id for each character.

const END_OF_TEXT = "<|endoftext|>";

export const END_OF_TEXT_ID = 0;

export class Vocabulary {
  constructor(characters) {
    this.tokens = [END_OF_TEXT, ...characters];
    this.ids = new Map(this.tokens.map((token, id) => [token, id]));
    this.ids.delete(END_OF_TEXT);
    const marks = [..."?_*#. "];
    this.substitute = marks.find((mark) => this.ids.has(mark)) ?? this.tokens[1];
  }

  /** Return whether all characters of a text are known. */
  canWrite(text) {
    return [...text].every((character) => this.ids.has(character));
  }

  /** Return the ids of a text; a character that is not known becomes a question mark. */
  encode(text) {
    const other = this.ids.get(this.substitute);
    const ids = [];
    splitDocuments(text).forEach((document, i) => {
      if (i > 0) ids.push(END_OF_TEXT_ID);
      for (const character of document) ids.push(this.ids.get(character) ?? other);
    });
    return ids;
  }

  /** Return the text that a token adds; the end-of-text token adds none. */
  textOf(id) {
    return id === END_OF_TEXT_ID ? "" : this.tokens[id];
  }
}

// In JavaScript, ^ and $ match at each line end of Unicode, not at "\n" alone
function splitDocuments(text) {
  const documents = [[]];
  text.split("\n").forEach((line, i) => {
    const isEnd = line === END_OF_TEXT;
    if (i > 0) documents.at(-1).push("\n");
    if (isEnd) documents.push([]);
    else documents.at(-1).push(line);
  });
  return documents.map((parts) => parts.join(""));
}
