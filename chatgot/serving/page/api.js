// What does the server say? Its routes, its streams, and its failures as sentences for people.

const PATIENCE_MS = 15_000; // for a list; an answer may take as long as it takes

/** A failure, said as one plain sentence. */
export class Trouble extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

/** Return what to say of an error, be it the server's or the page's own. */
export function sentenceOf(error) {
  const isTrouble = error instanceof Trouble;
  return isTrouble ? error.message : `Something went wrong in this page: ${error.message}`;
}

let key = "";

/** Send this API key with each request from now on. */
export function setKey(text) {
  key = text;
}

/** Return the models that the server offers. */
export async function listModels() {
  const answer = await getJson("v1/models");
  return answer.data;
}

/** Return the runs that can be watched. */
export function listRuns() {
  return getJson("watch/runs");
}

/** Return one run: its rows and its samples. */
export function readRun(runId) {
  return getJson(`watch/runs/${encodeURIComponent(runId)}`);
}

/** Yield the pieces of an answer: {name, text, finish, step}; step: of the checkpoint, if known. */
export async function* streamChat(request, signal) {
  const body = { ...request, stream: true };
  for await (const chunk of events("v1/chat/completions", body, signal)) {
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const delta = choice.delta ?? {};
    yield {
      name: typeof delta.name === "string" ? delta.name : "",
      text: delta.content ?? "",
      finish: choice.finish_reason ?? "",
      step: stepOf(chunk.system_fingerprint),
    };
  }
}

// The fingerprint names the file that answered: RUN_step_N
function stepOf(fingerprint) {
  const step = /_step_(\d+)$/.exec(fingerprint ?? "")?.[1];
  return step === undefined ? null : Number(step);
}

/** Yield the pieces of a text that goes on: {text, tokens, finish}. */
export async function* streamText(request, signal) {
  const body = { ...request, stream: true };
  for await (const chunk of events("v1/completions", body, signal)) {
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const text = choice.text ?? "";
    const finish = choice.finish_reason ?? "";
    yield { text, tokens: tokensOf(choice.logprobs), finish };
  }
}

function tokensOf(logprobs) {
  return (logprobs?.tokens ?? []).map((text, i) => ({
    text,
    logprob: logprobs.token_logprobs?.[i] ?? null,
    top: likeliest(logprobs.top_logprobs?.[i]),
  }));
}

function likeliest(logprobs) {
  return Object.entries(logprobs ?? {})
    .map(([text, logprob]) => ({ text, logprob }))
    .sort((a, b) => b.logprob - a.logprob)
    .slice(0, 5);
}

/** Whether this page can say what of a text is copied from the training text. */
export const canFindCopies = true;

/** Return which stretches of some texts are copied: {least, copied_share, copies}. */
export async function findCopies(model, texts) {
  const body = JSON.stringify({ model, texts });
  const headers = { "Content-Type": "application/json" };
  const answer = await ask("copied", { method: "POST", headers, body });
  return answer.json();
}

async function getJson(path) {
  const answer = await ask(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
  return answer.json();
}

async function ask(path, options) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server does not answer. Is it still running?");
  }
  if (!answer.ok) throw await troubleOf(answer);
  return answer;
}

async function troubleOf(answer) {
  const { status } = answer;
  if (status === 401) return new Trouble("The server wants an API key.", status);
  if (status === 429) {
    return new Trouble("The server is busy with other answers. Try again in a moment.", status);
  }
  let said = "";
  try {
    said = (await answer.json()).error.message;
  } catch {
    // an error without OpenAI's form: its number has to do
  }
  const failed = status >= 500 ? "The server failed" : "The server refused this";
  return new Trouble(said ? `${failed}: ${said}` : `${failed} (HTTP ${status}).`, status);
}

async function* events(path, body, signal) {
  const answer = await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of dataLines(answer.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Trouble(`The server failed: ${chunk.error.message}`);
    yield chunk;
  }
  throw new Trouble("The connection broke off before the answer ended.");
}

// Server-sent events, as far as OpenAI's API uses them: one line of data each
async function* dataLines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(brokenOff);
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    // whoever stops reading ends the request, and the server frees the slot
    reader.cancel().catch(() => {});
  }
}

function brokenOff(error) {
  if (error.name === "AbortError") throw error;
  throw new Trouble("The connection broke off before the answer ended.");
}
