// Return how many billion multiply-adds a second this browser does in a plain loop: four sums side
// by side, over numbers that stay in the fastest cache.
(seconds) => {
  const n = 4096;
  const x = Float32Array.from({ length: n }, (_, i) => Math.cos(i));
  const weights = Float32Array.from({ length: n }, (_, i) => Math.sin(i));
  const pass = () => {
    let [a, b, c, d] = [0, 0, 0, 0];
    for (let i = 0; i < n; i += 4) {
      a += x[i] * weights[i];
      b += x[i + 1] * weights[i + 1];
      c += x[i + 2] * weights[i + 2];
      d += x[i + 3] * weights[i + 3];
    }
    return a + b + c + d;
  };
  let kept = 0; // so that no pass can be left out
  const measure = (until) => {
    const began = performance.now();
    let passes = 0;
    while (performance.now() - began < until) {
      for (let i = 0; i < 100; i += 1) kept += pass();
      passes += 100;
    }
    return (passes * n) / (performance.now() - began) / 1e6;
  };
  measure(200); // the browser compiles the loop meanwhile
  const speed = measure(1000 * seconds);
  return Number.isFinite(kept) ? speed : 0;
};
