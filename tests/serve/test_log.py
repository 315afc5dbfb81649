from coin_export.serve.log import essential_errors, taken_port

LOG = """\
W1123 21:17:55.387093 5971 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1123 21:17:55.387481 5971 server.cc:241] "CudaDriverHelper has not been initialized."
[libprotobuf ERROR /tmp/build/text_format.cc:337] Error parsing text-format inference.ModelConfig: no field named "foo".
E1123 21:21:37.980225 7194 model_repository_manager.cc:1460] "Poll failed for model directory 'a': no proto"
E1123 21:21:35.711199 7194 model_lifecycle.cc:642] "failed to load \\'b\\' version 1: no dims\\n\\nAt:\\n  x.py(5)\\n"
E1123 21:21:35.711199 7194 model_lifecycle.cc:642] "failed to load \\'b\\' version 1: no dims\\n\\nAt:\\n  x.py(5)\\n"
+-------+---------+
| Model | Version |
+-------+---------+

error: creating server: Internal - failed to load all models
"""


def test_only_the_reasons_are_kept_once_each_without_tracebacks() -> None:
    assert essential_errors(LOG) == [
        'Error parsing text-format inference.ModelConfig: no field named "foo".',
        "Poll failed for model directory 'a': no proto",
        "failed to load 'b' version 1: no dims",
    ]


def test_last_words_and_then_last_lines_are_told_when_there_is_no_reason() -> None:
    assert essential_errors("I1 fine\nerror: creating server: no\n") == ["error: creating server: no"]
    assert essential_errors("\n".join(f"line {n}" for n in range(9))) == [f"line {n}" for n in range(4, 9)]
    assert essential_errors("") == []


def test_a_taken_port_is_recognised() -> None:
    line = (
        """E1 1 2 main.cc:257] "failed to start HTTP service: Unavailable - Socket '127.0.0.1:515' already in use " """
    )
    assert taken_port(line) == 515
    assert taken_port(LOG) is None
