// Names for two parts of MkDocs Material that screen readers announce without one.
const search = document.querySelector(".md-search");
if (search) search.setAttribute("aria-label", "Search");
const unmark = () => document.querySelectorAll(".md-code__nav:not([role])").forEach((nav) => nav.setAttribute("role", "none"));
new MutationObserver(unmark).observe(document.body, { childList: true, subtree: true });
unmark();
