// Said before anything is loaded: what this page can't work without, and the theme that the course's pages were
// switched to. An old-fashioned script, for it must also run from a file and in old browsers.

(function () {
  try {
    document.documentElement.dataset.theme = localStorage.theme || "";
  } catch (error) {
    // a browser that keeps nothing: it stays with the system's theme
  }
  // the smallest module that uses a vector: a function that makes one of a number and drops it
  var SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 9, 1, 7, 0, 65, 0, 253, 15, 26, 11];
  var problem = "";
  if (location.protocol === "file:") {
    problem = "Browsers let no page that was opened as a file load its networks. Start a server in this folder, " +
      "“python -m http.server”, and open http://localhost:8000.";
  } else if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(SIMD))) {
    problem = "This browser has no WebAssembly with SIMD, in which the networks run: a current one has (since 2023).";
  } else if (typeof DecompressionStream !== "function") {
    problem = "This browser can't unpack compressed files, in which the networks come: a current one can (since 2023).";
  }
  if (!problem) return;
  document.getElementById("problem").textContent = problem;
  document.getElementById("problem").hidden = false;
  document.getElementById("page").hidden = true;
})();
