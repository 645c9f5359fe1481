"""Writes nbs/images/tour.png, the README's picture: one figure of each part of the tour, side by side."""
import base64
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from arlm_nb.core.plotting import static_png, theme
from arlm_nb.tour import parts, run_part

OUT = Path(__file__).resolve().parents[1] / "nbs" / "images" / "tour.png"
SHOWN = {"Markov chain": -1, "tuned lens": -1, "function vector": 0, "watermark": 0}  # which figure of each part


def picture(name: str) -> str:
    "One figure as an HTML image with a caption."
    part = run_part(name)
    fig = part["figures"][SHOWN[name]]
    fig.update_layout(template=theme(), height=380, width=620)
    png = base64.b64encode(static_png(fig, width=620)).decode()
    return f'<figure><figcaption>{part["title"]}</figcaption><img src="data:image/png;base64,{png}"></figure>'


def main() -> None:
    from playwright.sync_api import sync_playwright
    import shutil
    style = ("body {margin: 12px; background: white; font: 15px sans-serif; display: grid; grid-template-columns: 1fr 1fr; gap: 10px; width: 1280px}"
             "figure {margin: 0; border: 1px solid #ddd; border-radius: 6px; padding: 8px} img {width: 100%} figcaption {font-weight: bold}")
    page_text = f"<style>{style}</style>" + "".join(picture(name) for name in parts)
    OUT.parent.mkdir(exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1304, "height": 800})
        page.set_content(page_text)
        page.locator("body").screenshot(path=OUT)
        browser.close()
    print(f"{OUT.name}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__": main()
