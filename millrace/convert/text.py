"""The ordinary text that a conversion measures a model on, where its user gives none."""

TEXT = """\
A water mill takes its power from a stream. A weir across the stream holds the water back, a channel
leads it to the wheel, and a gate at the head of the channel decides how much may pass. When the gate is
opened too far the wheel turns wildly and the stones burn the flour; when it is closed too far the wheel
stands still, and the miller waits. "Good flour," he used to say, "is made by a steady hand at the gate."

In 1784 there were about 5,600 mills in the county; by 1901 only 312 of them were still at work. The
reasons are well known: steam (from 1790), cheaper grain from overseas, and, after 1880, rollers of steel.

<|user|> What is the capital of France, and how many people live there?
<|assistant|> The capital of France is Paris. About 2.1 million people live in the city itself, and more
than 12 million in the whole area around it. Is there anything else you would like to know?

def largest(values: list[int]) -> int:
    # The largest of the values; an empty list has none.
    if not values:
        raise ValueError("no values")
    best = values[0]
    for value in values[1:]:
        if value > best:
            best = value
    return best

{"name": "get_weather", "arguments": {"city": "Reykjavik", "unit": "celsius", "days": [1, 2, 3]}}

Die Muehle am rauschenden Bach klapperte bei Tag und bei Nacht. La nuit, tous les chats sont gris. El
perro de San Roque no tiene rabo, porque Ramon Ramirez se lo ha cortado. 水は低い方へ流れる。 Вода течёт вниз.

To solve 3x + 7 = 22, first subtract 7 from both sides, which gives 3x = 15, and then divide by 3: x = 5.
Check: 3 * 5 + 7 = 22. The same steps work for every equation of the form ax + b = c, if a is not zero.

Dear Ms. Albright, thank you for your letter of 14 March. We are sorry that the parcel arrived damaged. A
new one was sent this morning and should reach you within three days; please keep the old one until then.
Kind regards, Tomas Lindqvist (Customer Service, ext. 4471; https://example.com/help?id=88213)
"""
