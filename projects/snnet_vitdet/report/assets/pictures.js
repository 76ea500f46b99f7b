// Sample detections, enlarged on a click.

function makePictures() {
  const dialog = byId("enlarged");
  const pictures = [...document.querySelectorAll(".pictures img")];
  let index = 0;

  function show(next) {
    index = (next + pictures.length) % pictures.length;
    const from = pictures[index];
    const image = element("img", { src: from.src, alt: from.alt });
    const buttons = [["Previous", () => show(index - 1)], ["Next", () => show(index + 1)], ["Close", () => dialog.close()]].map(
      ([text, act]) => {
        const button = element("button", { type: "button" }, text);
        button.addEventListener("click", act);
        return button;
      },
    );
    const focused = [...dialog.querySelectorAll("button")].indexOf(document.activeElement);
    const name = from.closest(".pictures").previousElementSibling.textContent;
    const caption = `${from.nextElementSibling.textContent}, ${name}`;
    dialog.replaceChildren(image, element("p", {}, caption), ...buttons);
    if (!dialog.open) dialog.showModal();
    if (focused >= 0) buttons[focused].focus();
  }

  for (const [i, picture] of pictures.entries()) {
    filled(picture, { role: "button", tabindex: 0, title: "Enlarge" }, []);
    picture.addEventListener("click", () => show(i));
    picture.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        show(i);
      }
    });
  }
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(index - 1);
    if (event.key === "ArrowRight") show(index + 1);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => pictures[index].focus());
}
