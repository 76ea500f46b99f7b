// Sample detections, enlarged on a click until the next one.

function makePictures() {
  const dialog = byId("enlarged");
  for (const picture of document.querySelectorAll(".pictures img")) {
    const show = () => {
      const name = picture.closest(".pictures").previousElementSibling.textContent;
      const caption = element("p", {}, `${picture.nextElementSibling.textContent}, ${name}`);
      dialog.replaceChildren(element("img", { src: picture.src, alt: picture.alt }), caption, element("button", { type: "button" }, "Close"));
      dialog.showModal();
    };
    filled(picture, { role: "button", tabindex: 0, title: "Enlarge" }, []);
    picture.addEventListener("click", show);
    picture.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      show();
    });
  }
  dialog.addEventListener("click", () => dialog.close());
}
