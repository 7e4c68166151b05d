// The comparison of two runs: the search, opened on the queries whose rank changed most.
soon(function* () {
  if (document.getElementById("data")) explorer();
  yield;
});
