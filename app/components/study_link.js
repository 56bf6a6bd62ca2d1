// Shows the address of a study's voting page, which lies beside this page, and copies it.

function receive() {
  const path = (props.value || {}).path;
  $(".study-link").hidden = !path;
  if (!path) return;
  const address = new URL(path, document.baseURI).href;
  $("code").textContent = address;
  $(".local").hidden = !/^(localhost|127\.|\[::1\])/.test(new URL(address).hostname);
  $("a").href = address;
}

$(".copy").addEventListener("click", async () => {
  let said = "Copied";
  try {
    await navigator.clipboard.writeText($("code").textContent);
  } catch (error) { // no clipboard without https, or without leave: the address is selected for the keyboard
    getSelection().selectAllChildren($("code"));
    said = "Press Ctrl + C";
  }
  $(".copy").textContent = said;
  $(".sr-only").textContent = said;
  setTimeout(() => { $(".copy").textContent = "Copy the link"; }, 2000);
});
watch("value", receive);
receive();
