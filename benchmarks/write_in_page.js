// Let the page write a text; return it, and the seconds that it took.
async (request) => {
  const began = performance.now();
  let text = "";
  for await (const piece of chatgot.streamText(request)) text += piece.text;
  return { text, seconds: (performance.now() - began) / 1000 };
};
