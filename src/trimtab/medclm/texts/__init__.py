"""Questions, reasoning and answers: what can be asked, how it is worded, who writes it."""

from trimtab.medclm.texts.asking import Ask, asks
from trimtab.medclm.texts.generator import GenerationError, Generator, Text
from trimtab.medclm.texts.template import TemplateGenerator
from trimtab.medclm.texts.wording import seed_text

__all__ = ["Ask", "GenerationError", "Generator", "TemplateGenerator", "Text", "asks", "seed_text"]
