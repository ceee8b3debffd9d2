// From messages to text: a message is a speech, `NAME:`, its text and a blank line.

/** Return the text after which the model speaks as `character`; "": before a speaker's line. */
export function promptText(speeches, character) {
  const parts = speeches.map(({ name, text }) => {
    const line = name ? `${name}:\n` : "";
    return `${line}${text.trimEnd()}\n\n`;
  });
  if (character) parts.push(`${character}:\n`);
  return parts.join("");
}

/** Return what a chat is about: its speeches, and who may speak. */
export function sceneOf({ messages, user_name: user, character, room = [] }, speakers) {
  const isAuto = character === "auto";
  const named = { user, assistant: isAuto ? "" : character };
  const speeches = messages
    .map(({ role, name, content }) => ({ name: name || named[role] || "", text: content }))
    .filter(({ text }) => text.trimEnd());
  const known = speakers.map((speaker) => speaker.name);
  const others = known.filter((name) => name !== user);
  const spoken = speeches.map(({ name }) => name);
  const everyone = [...known, ...spoken, ...room, user, named.assistant];
  return {
    speeches,
    character: named.assistant,
    candidates: isAuto ? (room.length ? room : others) : [],
    lines: [...new Set(everyone)].filter(Boolean).map((name) => `${name}:`),
    spoken: new Set(spoken),
  };
}
