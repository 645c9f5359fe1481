"""`arlm tour` on the shipped models and on a Hugging Face folder; what is wrong is said before the work starts."""
import re

import pytest
from tests.models import hf_model
from typer.testing import CliRunner

from arlm_nb.core.checkpoints import checkpoint_names, load_lm
from arlm_nb.core.cli import app
from arlm_nb.core.tokenizer import as_hf

run = CliRunner().invoke
shipped = pytest.mark.skipif(
    not {"docs-1m", "icl-tasks"} <= set(checkpoint_names()), reason="the reference checkpoints are not there (make checkpoints)"
)


@shipped
@pytest.mark.timeout(400)
def test_tour_of_the_shipped_models(tmp_path):
    report = tmp_path/"tour.html"
    result = run(app, ["tour", "--out", str(report)])
    assert result.exit_code == 0, result.output
    page = report.read_text()
    assert len(re.findall(r'class="plotly-graph-div"', page)) >= 4 and len(re.findall("<table>", page)) >= 4
    assert "http://" not in page.split("</script>")[-1].replace("http://www.w3.org", "") and "could not be run" not in page
    p_values = {
        m[1]: float(m[2]) for m in re.finditer(r"<td>(watermarked, 30% edited|not watermarked)</td><td>\d+</td><td>([\d.e+-]+)</td>", page)
    }
    assert p_values["watermarked, 30% edited"] <= 0.01 < p_values["not watermarked"]


@shipped
@pytest.mark.timeout(400)
def test_tour_of_a_hugging_face_folder(tmp_path):
    import transformers
    import torch
    tokenizer = load_lm("docs-1m").tokenizer
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    model.save_pretrained(tmp_path/"model")
    as_hf(tokenizer).save_pretrained(tmp_path/"model")
    report = tmp_path/"tour.html"
    result = run(app, ["tour", "--model", str(tmp_path/"model"), "--out", str(report)])
    assert result.exit_code == 0, result.output
    page = report.read_text()
    assert page.count("<h2>") == 4 and "could not be run" not in page


def test_errors_come_before_the_work(tmp_path):
    def says(*arguments):
        with pytest.raises(ValueError) as error: app(["tour", *map(str, arguments)], standalone_mode=False)
        return str(error.value)
    assert "cannot write the report" in says("--out", "/proc/none/tour.html")
    assert "unknown checkpoint 'docs-1n'" in says("--model", "docs-1n", "--out", tmp_path/"t.html")
    hf_model("gpt2").save_pretrained(tmp_path/"bare")
    assert "has no tokenizer" in says("--model", tmp_path/"bare", "--out", tmp_path/"t.html")
