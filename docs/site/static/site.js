// What the theme leaves to do for people who use the keyboard or a screen reader.
function letTheKeyboardScroll() {
  for (const block of document.querySelectorAll("pre, .table-wrapper")) {
    const scrolls = block.scrollWidth > block.clientWidth || block.scrollHeight > block.clientHeight;
    block.tabIndex = scrolls ? 0 : -1;
  }
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
  letTheKeyboardScroll();
  addEventListener("resize", letTheKeyboardScroll);
});
