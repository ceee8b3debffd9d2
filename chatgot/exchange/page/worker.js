// Where the model computes: beside the page, so that the page never freezes. Messages come in with
// an id, and what is written goes back with it, piece by piece.

import { Engine } from "./engine.js";
import { Model } from "./forward.js";
import { promptText, sceneOf } from "./speeches.js";
import { Subwords } from "./subwords.js";
import { Characters } from "./vocabulary.js";
import { readTensors } from "./weights.js";

/**
 * Answer the messages that come through `port`, a worker's own scope or a MessagePort.
 * sliceMs: how long it computes before it listens again.
 */
export function serve(port, sliceMs) {
  let engine = null;
  let about = null;
  let last = Promise.resolve(); // one job after the other
  const wanted = new Set(); // the ids of the jobs that nobody has stopped
  const turn = makeTurn();

  const jobs = {
    load: function* load({ text, ...rest }) {
      about = rest.about;
      const tensors = readTensors(about.weights, text);
      const { characters, subwords } = about;
      const vocabulary = subwords ? new Subwords(subwords) : new Characters(characters);
      engine = new Engine(new Model(about.model, tensors), vocabulary);
      yield { finish: "ready" };
    },
    logits: function* logits({ ids }) {
      yield { logits: yield* engine.allLogits(ids), finish: "stop" };
    },
    text: ({ request }) =>
      engine.write({ ...request, controls: { ...about.sampling, ...request.controls } }),
    chat: function* chat({ request }) {
      const scene = sceneOf(request, about.speakers);
      let { character } = scene;
      if (scene.candidates.length) {
        const beforeLine = promptText(scene.speeches, "");
        character = yield* engine.chooseSpeaker(beforeLine, scene.candidates, scene.spoken);
      }
      yield { text: "", tokens: [], finish: "", name: character };
      const prompt = promptText(scene.speeches, character);
      yield* engine.write({ prompt, controls: { ...about.sampling, ...request }, lines: scene.lines });
    },
  };

  async function run({ id, job, ...details }) {
    let pieces = [];
    let since = performance.now();
    const send = () => {
      if (pieces.length) port.postMessage({ id, pieces });
      pieces = [];
    };
    for (const piece of jobs[job](details)) {
      if (piece) pieces.push(piece);
      if (performance.now() - since > sliceMs) {
        send();
        await turn();
        if (!wanted.has(id)) return;
        since = performance.now();
      }
    }
    send();
    port.postMessage({ id, done: true });
  }

  port.onmessage = ({ data }) => {
    if (data.job === "stop") {
      wanted.delete(data.id);
      return;
    }
    wanted.add(data.id);
    const fail = (error) => port.postMessage({ id: data.id, failed: error.message });
    last = last.then(() => wanted.has(data.id) && run(data)).catch(fail);
  };
}

// A timer would wait for 4 ms each time; a message comes at once, after those that wait already
function makeTurn() {
  const { port1, port2 } = new MessageChannel();
  return () =>
    new Promise((resolve) => {
      port1.onmessage = resolve;
      port2.postMessage(null);
    });
}
