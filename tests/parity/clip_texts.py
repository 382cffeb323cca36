"""Texts that pull at CLIP's tokenizer. Not among them: text in a wrong encoding, which ftfy repairs and
we don't, and code points that the two regular-expression libraries' Unicode versions take apart."""

TEXTS = [
    "a photo of a cat",
    "A PHOTO of A Dog!!",
    "",
    "   ",
    "...!!!???",
    "it's John's, they'd've, we'll; I'M can't ISN'T 'S 'RE it's's 's",
    "don’t “quote” ‘x’ ‚low‛ ʼn ŉ",
    "emoji 😀👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇺🇸",
    "naïve café Ångström cafe\u0301 e\u0301\u0323",
    "日本語テキスト 中文字符 한국어",
    "Привет мир ЁЖ Σίσυφος ΣΊΣΥΦΟΣ",
    "مرحبا بالعالم हिन्दी नमस्ते ᏣᎳᎩ",
    "12345 3.14 ½ ² ① Ⅻ 𝟙𝟚 100% $5 €10 ©2020™",
    "#hashtag @user http://x.com/?a=b&c=d _under_score_ --dash-- a-b",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; &quot;q&quot; &#39;s &eacute; &nbsp;x &rsquo;s",
    "<p>&amp;amp; &rsquo;s</p> &bogus; &amp &lt",
    "tabs\tand\nnewlines\r\n  and   spaces\u00a0nbsp\u3000ideo\u1680ogham\x1cfs\u2028line",
    "ＦＵＬＬ ｗｉｄｔｈ ﾊﾝｶｸ ﬁne ﬂuff ĳs ǆ",
    "İstanbul ıi ß ẞ STRASSE ſ 'ſ ø Ø æ Æ œ Œ đ Đ a\u00adb",
    "zero\u200bwidth \u200d joiner \ufeffbom x\x00y\x07z\x7f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 Ⓐ",
    "a" * 300,
    "word " * 200,
]
