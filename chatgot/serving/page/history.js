// What did the notebook hold before? A stack of passages to go back to, and one to go forward to.

const MOST = 200;

export class History {
  constructor() {
    this.past = [];
    this.future = [];
  }

  /** Remember a passage that is about to change. */
  remember(passage) {
    this.past.push(passage);
    if (this.past.length > MOST) this.past.shift();
    this.future = [];
  }

  /** Return the passage before `present`, or null. */
  back(present) {
    if (!this.past.length) return null;
    this.future.push(present);
    return this.past.pop();
  }

  /** Return the passage that was undone last, or null. */
  forward(present) {
    if (!this.future.length) return null;
    this.past.push(present);
    return this.future.pop();
  }
}
